"""Groups that train without each other end with what one process has that trains them in turn."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.side_by_side import SideBySideTrainer, folder_of_group, merged_rows
from recbole_perpeft.runs import cluster, training
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.groups import train_group
from recbole_perpeft.runs.run import resume, run
from recbole_perpeft.training.checkpoint import load_checkpoint

FREEZE = {
    "shared_in_groups": "freeze",
    "epochs_global": 1,
    "epochs": 3,
    "stopping_step": 1,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.01,
    "clip_grad_norm": {"max_norm": 1.0},
    "peft_type": "none",
}


class KilledError(Exception):
    pass


@pytest.fixture
def trained(monkeypatch):
    """Groups that were trained, in the order in which they were; all in this process, without Ray."""
    found = []

    def one_after_the_other(config, folder, groups):
        settings = cluster.settings_anywhere(config) | {"groups_at_once": 1, "trackers": None}
        for group in groups:
            assert train_group(config.model_class, settings, folder.path, group) == ""
            found.append(group)
            yield group

    monkeypatch.setattr(training, "train_groups", one_after_the_other)
    return found


def check_same(ours, theirs):
    """Results, models and what it takes to go on."""
    for key in ("group_best_epochs", "best_valid_result", "test_result", "epochs"):
        assert ours[key] == theirs[key], key
    for file in ("best.pth", "last.pth"):
        found, expected = (load_checkpoint(f"{result['run_folder']}/{file}") for result in (ours, theirs))
        for name in ("epoch", "cur_step", "best_valid_score", "best_valid_result"):
            assert found[name] == expected[name], (file, name)
        for name, tensor in expected["state_dict"].items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(found["state_dict"][name], tensor), (file, name)
    moments, wanted = (content["optimizers"]["optimizer"]["state"] for content in (found, expected))
    assert moments.keys() == wanted.keys()
    assert all(torch.equal(moments[key][name], one[name]) for key, one in wanted.items() for name in one)
    for name in ("scores", "epochs", "waited"):
        assert found["group_bests"][name] == expected["group_bests"][name], name
    losses, wanted = (pd.read_csv(f"{r['run_folder']}/metrics.csv")["train_loss"].tolist() for r in (ours, theirs))
    assert losses == pytest.approx(wanted, rel=1e-12)


def test_groups_side_by_side_equal_one_process_and_an_interrupted_run_trains_none_twice(
    aspects_settings, trained, monkeypatch
):
    settings = aspects_settings | FREEZE
    theirs = run("PerPEFT", config_dict=settings)
    folder = f"{settings['runs_folder']}/side"
    finish = SideBySideTrainer._finish_epoch

    def finish_and_die(trainer, row, train_data):
        finish(trainer, row, train_data)
        if trainer.only_group is not None and len(trained) == 1:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(SideBySideTrainer, "_finish_epoch", finish_and_die)
        run("PerPEFT", config_dict=settings | {"groups_at_once": 2, "run_folder": folder})
    assert len(trained) == 1
    ours = resume(folder)
    assert sorted(trained) == list(range(len(ours["group_best_epochs"])))
    check_same(ours, theirs)
    assert not folder_of_group(Path(folder), 0).parent.exists()


def test_what_groups_have_left_is_outdated_where_one_process_goes_on(aspects_settings, tmp_path):
    settings = aspects_settings | FREEZE | {"epochs": 1, "run_folder": str(tmp_path / "run")}
    run("PerPEFT", config_dict=settings, with_test=False)
    left = folder_of_group(tmp_path / "run", 0)
    left.mkdir(parents=True)
    resume(tmp_path / "run", {"epochs": 2}, with_test=False)
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"shared_in_groups": "train"}, "set shared_in_groups to freeze, or groups_at_once to 1"),
        ({"nproc": 2, "batches_a_step": 2}, "groups_at_once is 2 and nproc 2: .* set one of them to 1"),
        ({"batches_a_step": 2}, "limits the gradient of several groups together"),
        ({"regroup_every": 1}, "set regroup_every to 0"),
    ],
)
def test_what_does_not_leave_groups_alone_is_refused(aspects_settings, more, told):
    with pytest.raises(PerPEFTError, match=told):
        Config("PerPEFT", config_dict=aspects_settings | FREEZE | {"groups_at_once": 2} | more)


def test_a_run_that_writes_no_checkpoint_cannot_hand_groups_on(aspects_settings):
    with pytest.raises(PerPEFTError, match=r"does not write \(saved\); set groups_at_once to 1"):
        run("PerPEFT", config_dict=aspects_settings | FREEZE | {"groups_at_once": 2}, saved=False)


def test_an_epoch_of_all_is_the_sum_of_those_of_groups():
    rows = [
        {"stage": "personalised", "epoch": epoch, "train_loss": loss, "train_seconds": 1.0, "ndcg@10": 0.5}
        for epoch, loss in ((2, 1.0), (3, 2.0), (4, 4.0), (2, 8.0), (3, 16.0))
    ]
    merged = merged_rows(rows)
    assert [(row["epoch"], row["train_loss"], row["train_seconds"]) for row in merged] == [
        (2, 9.0, 2.0),
        (3, 18.0, 2.0),
        (4, 4.0, 1.0),
    ]
    assert "ndcg@10" not in merged[0]
