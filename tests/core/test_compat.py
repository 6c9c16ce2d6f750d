import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import dok_matrix

from recbole_perpeft.core import compat
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import load, run


@pytest.fixture(autouse=True)
def _applied():
    compat.apply()


def test_numpy_names_of_recbole_exist_and_existing_ones_stay():
    assert np.dtype(np.float) == np.float64
    assert np.dtype(np.long).kind == "i"
    assert np.bool is np.bool_
    before = {name: getattr(np, name) for name in compat._NUMPY_NAMES}
    compat.apply()
    assert {name: getattr(np, name) for name in compat._NUMPY_NAMES} == before


def test_interactions_can_be_made_without_a_configuration():
    assert len(Interaction({"user_id": torch.tensor([1, 2])})) == 2


def test_recbole_can_fill_sparse_matrices():
    matrix = dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 1): 1, (1, 2): 1})
    np.testing.assert_array_equal(matrix.toarray(), [[0, 1, 0], [0, 0, 1]])


def test_a_method_that_scipy_has_is_not_replaced(monkeypatch):
    def own(matrix, entries):
        raise AssertionError

    monkeypatch.setattr(dok_matrix, "_update", own)
    compat.apply()
    assert dok_matrix._update is own


def test_only_warnings_of_recbole_are_silenced():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.apply()
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="recbole.trainer.trainer")
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="recbole_perpeft.runs.config")
    assert len(caught) == 1


def test_tensorboard_goes_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from recbole.trainer import trainer

    original = trainer.get_tensorboard
    with compat.tensorboard_in(tmp_path / "events"):
        trainer.get_tensorboard(None).close()
    assert list((tmp_path / "events").iterdir())
    assert not (tmp_path / "log_tensorboard").exists()
    assert trainer.get_tensorboard is original


def test_a_link_in_the_place_of_the_folder_of_events_is_not_followed(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "theirs")
    with pytest.raises(PerPEFTError, match="tensorboard is a link, .* delete the link"):
        compat.events_in(tmp_path / "tensorboard")
    assert not list((tmp_path / "theirs").iterdir())


def test_a_fresh_program_has_no_ray_no_quick_start_of_recbole_and_no_anomaly_detection():
    code = (
        "import sys, torch, recbole_perpeft.runs.run, recbole_perpeft.cli.train; "
        "print([name for name in ('ray', 'recbole.quick_start') if name in sys.modules]); "
        "from recbole_perpeft.runs.config import Config; Config('SASRec', 'ml-100k'); "
        "print(torch.is_anomaly_enabled())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, *others = result.stdout.splitlines()
    assert imported == "[]" and "False" in others


@pytest.mark.parametrize("settings", ({}, {"train_neg_sample_args": None}), ids=("negatives", "none"))
def test_pop_counts_every_interaction_and_no_negatives(toy_settings, settings):
    result = run("Pop", config_dict=toy_settings | {"epochs": 1, "train_batch_size": 256} | settings)
    _, model, _, train_data, _, _ = load(result["run_folder"])
    items = train_data._dataset.inter_feat["item_id"]
    assert model.item_cnt[:, 0].tolist() == torch.bincount(items, minlength=model.n_items).tolist()
