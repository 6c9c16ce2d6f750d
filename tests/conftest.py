"""Fixtures that several test modules share."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# A busy machine is no error.
hypothesis.settings.register_profile("however slow", deadline=None)
hypothesis.settings.load_profile("however slow")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start import this checkout, whatever is installed and whatever folder they start in.
_ROOT = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))

pytest_plugins = ("support.foundations", "support.logs", "support.prepared", "support.shop", "support.workers")


def pytest_addoption(parser):
    parser.addoption("--record-golden", action="store_true", help="write tests/golden anew")
    parser.addoption("--attack-count", type=int, default=32, help="how many mutated inputs in all (%(default)s)")
    parser.addoption("--attack-first", type=int, default=0, help="number of the first one of each kind")
    parser.addoption("--attack-seed", type=int, default=0, help="draws others")
    parser.addoption("--kills", type=int, default=11, help="how many kills in all (%(default)s)")
    parser.addoption("--kills-first", type=int, default=0, help="number of the first one of each program")
    parser.addoption("--kills-seed", type=int, default=0, help="kills at other moments")


def pytest_collection_modifyitems(config, items):
    """Attacks and kills are left out unless the command line asks for them: with `-k` alone it does not."""
    words = [str(word) for word in config.invocation_params.args]
    named = (word for word in words if not (config.option.keyword and word.endswith(config.option.keyword)))
    asked = " ".join([config.option.markexpr, *named])
    for marker in ("attack", "kill"):
        if marker not in asked:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def write_toy_data(folder, n_users=40, n_items=30, seed=0):
    """A small log `toy/toy.inter`: every user buys 5 to 9 different items, one a day."""
    rng = np.random.default_rng(seed)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        items = rng.permutation(n_items)[: rng.integers(5, 10)]
        lines += [f"u{user}\ti{item}\t{day}" for day, item in enumerate(items)]
    (folder / "toy").mkdir()
    (folder / "toy" / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def toy_path(tmp_path):
    """A `data_path` with the data set `toy`."""
    return write_toy_data(tmp_path)


@pytest.fixture
def toy_settings(toy_path):
    """Settings of a quick run on `toy` below the test's own folder."""
    return {
        "dataset": "toy",
        "data_path": str(toy_path),
        "runs_folder": str(toy_path / "runs"),
        "cache_folder": str(toy_path / "cache"),
        "show_progress": False,
        "epochs": 3,
        "train_batch_size": 64,
        "use_gpu": False,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
    }


@pytest.fixture(scope="session")
def small_aspects(tmp_path_factory):
    """A `data_path` with `aspects` of 80 products and 150 users."""
    from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects

    folder = tmp_path_factory.mktemp("small_aspects")
    make_aspects(folder / "aspects", AspectsSettings(n_items=80, n_users=150, seed=5), show_progress=False)
    return folder


@pytest.fixture
def aspects_settings(small_aspects, tmp_path):
    """Settings of a quick run on `small_aspects`; the processed content is shared by all tests."""
    return {
        "dataset": "aspects",
        "data_path": str(small_aspects),
        "cache_folder": str(small_aspects / "cache"),
        "runs_folder": str(tmp_path / "runs"),
        "show_progress": False,
        "use_gpu": False,
        "epochs_global": 2,
        "epochs": 2,
        "n_groups": 3,
        "train_batch_size": 32,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
    }


@pytest.fixture(scope="session")
def tiny_aspects(tmp_path_factory):
    """`aspects` of 32 products and 40 users: the folder of its files, to be copied by tests that change them."""
    from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects

    settings = AspectsSettings(n_items=32, n_users=40, seed=5, min_purchases=5, max_purchases=8)
    return make_aspects(tmp_path_factory.mktemp("tiny") / "aspects", settings, show_progress=False)
