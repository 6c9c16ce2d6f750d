"""A checkpoint that can be read, and whose entries are not what was written: one sentence names file and entry."""

import shutil

import pytest
import torch
from conftest import write_toy_data
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import load, resume, run

NAMES = ["format_version", "model", "dataset", "config", "state_dict", "other_parameter", "epoch", "cur_step", "data"]
NAMES += ["best_valid_score", "best_valid_result", "extra", "optimizers", "scaler", "random", "loader", "history"]
OTHERS = [None, True, 3, -1.5, "x", [], [3], {}, {"x": 3}, {3: 3}, torch.zeros(2), {"x": torch.zeros(2)}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of one epoch."""
    root = write_toy_data(tmp_path_factory.mktemp("toy"))
    places = {"data_path": str(root), "cache_folder": str(root / "cache"), "run_folder": str(root / "run")}
    shown = {"use_gpu": False, "show_progress": False, "topk": [5], "valid_metric": "NDCG@5"}
    run("BPR", "toy", config_dict=places | shown | {"epochs": 1})
    return root / "run"


def outcome(action):
    """The message of an error; None where there was none."""
    try:
        action()
    except PerPEFTError as error:
        return str(error)
    return None


@given(st.sampled_from(NAMES), st.sampled_from(OTHERS), st.booleans())
@settings(max_examples=25)
def test_entries_that_are_not_what_was_written(finished, name, other, within):
    folder = finished.with_name("mutated")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    content = torch.load(folder / "last.pth", weights_only=True)
    entry = content[name]
    if within and isinstance(entry, dict) and entry:
        content[name] = entry | {next(iter(entry)): other}
    else:
        content[name] = other
    torch.save(content, folder / "last.pth")
    for action in (lambda: resume(folder, {"epochs": 2}), lambda: load(folder / "last.pth")):
        message = outcome(action)
        assert message is None or "\n" not in message and len(message) < 900


@pytest.mark.parametrize(
    ("name", "other"),
    [("epoch", "x"), ("history", [3]), ("random", {"python": 3}), ("loader", 3), ("optimizers", {"optimizer": {}})]
    + [("state_dict", 3), ("format_version", "1"), ("extra", None), ("config", [])],
)
def test_the_message_names_file_and_entry(finished, tmp_path, name, other):
    shutil.copytree(finished, tmp_path / "run")
    content = torch.load(finished / "last.pth", weights_only=True) | {name: other}
    torch.save(content, tmp_path / "run" / "last.pth")
    message = outcome(lambda: resume(tmp_path / "run", {"epochs": 2}))
    assert message.startswith(f"{tmp_path / 'run' / 'last.pth'} is damaged: its entry {name}"), message
    del content[name]
    torch.save(content, tmp_path / "run" / "last.pth")
    assert str(tmp_path / "run" / "last.pth") in outcome(lambda: resume(tmp_path / "run", {"epochs": 2}))


@pytest.mark.parametrize(
    ("key", "other", "reason"),
    [
        ("embedding_size", {}, "is damaged: its entry config is not what was written"),
        ("topk", " ", "topk is ' '"),
        ("a_misspelt_key", 1, "unknown setting"),
        ("load_col", {"inter": ["user_id", "item_id", [[]]]}, "config"),
    ],
)
def test_settings_that_are_not_what_was_written(finished, tmp_path, key, other, reason):
    content = torch.load(finished / "best.pth", weights_only=True)
    content["config"][key] = other
    torch.save(content, tmp_path / "best.pth")
    message = outcome(lambda: load(tmp_path / "best.pth"))
    assert message.startswith(str(tmp_path / "best.pth")) and reason in message
