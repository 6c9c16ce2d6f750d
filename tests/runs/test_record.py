"""What is read of a run, and what is said of a damaged one."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.record import DamagedFileError, RunRecord
from recbole_perpeft.runs.run import resume, run
from recbole_perpeft.training.checkpoint import load_checkpoint
from support.finished_run import write_run


def write_metrics(folder, rows):
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=["stage", "epoch", "train_seconds", "ndcg@10", "valid_seconds"]).to_csv(
        folder / "metrics.csv", index=False
    )


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run of two epochs."""
    write_run(tmp_path / "run", ["i1", "i2", "i3"], np.array([1, 2, 40]), groups=[0, 1, 1])
    return tmp_path / "run"


def read_all(folder):
    record = RunRecord(folder)
    record.check()
    record.ranks()


def test_the_best_epoch_is_of_the_last_stage(tmp_path):
    rows = [("global", 0, 1.0, 0.9, 0.5), ("personalised", 1, 1.0, 0.2, 0.5), ("personalised", 2, 1.0, 0.3, 0.5)]
    write_metrics(tmp_path / "run", [*rows, ("personalised", 3, 1.0, np.nan, np.nan)])
    record = RunRecord(tmp_path / "run")
    scores = record.valid_scores("NDCG@10", bigger_is_better=True)
    assert (scores.best, scores.best_epoch, len(record.epochs)) == (0.3, 3, 4)
    assert scores.by_epoch == {1: 0.9, 2: 0.2, 3: 0.3}
    assert record.seconds == pytest.approx(5.5)
    assert not record.has_model and not record.finished
    assert record.valid_scores("NDCG@10", bigger_is_better=False).best == 0.2


def test_a_run_that_has_not_begun_has_an_empty_record(tmp_path):
    record = RunRecord(tmp_path / "none")
    scores = record.valid_scores("NDCG@10", True)
    assert (scores.best, len(record.epochs), scores.by_epoch, record.seconds) == (None, 0, {}, 0.0)
    assert record.damage() is None
    write_metrics(tmp_path / "run", [("train", 0, 1.0, np.nan, np.nan)])
    assert RunRecord(tmp_path / "run").valid_scores("NDCG@10", True).best is None


def test_a_finished_run(folder):
    record = RunRecord(folder)
    assert record.finished and record.damage() is None
    assert record.result["test_result"]["hit@5"] == pytest.approx(2 / 3)
    assert record.machine == "1 of 2 CPU threads"
    ranks = record.ranks().sort_values("user")
    assert list(ranks) == ["user", "item", "rank", "group"] and ranks["rank"].tolist() == [1, 2, 40]
    (folder / "test_ranks.parquet").unlink()
    assert RunRecord(folder).ranks() is None


@pytest.mark.parametrize("name", ["result.json", "metrics.csv", "environment.json", "test_ranks.parquet"])
def test_a_file_that_is_cut_off_anywhere_is_named(folder, name):
    path = folder / name
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError) as error:
            read_all(folder)
        assert str(error.value).startswith(f"{path} is damaged: ") and "\n" not in str(error.value)
        assert f"--resume={folder}" in str(error.value)
        assert str(RunRecord(folder).damage()) == str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("result.json", '"epochs": 2', '"epochs": "2"', "epochs is '2'"),
        ("result.json", '"epochs": 2', '"epochs": true', "epochs is True"),
        ("result.json", '"epochs": 2', '"epoch": 2', "it has no epochs"),
        ("result.json", '"hit@5": 0', '"hit@5": "?", "x": 0', "hit@5 of the test result is '?'"),
        ("environment.json", '"threads": 1', '"threads": null', "threads is None"),
        ("metrics.csv", "train,0,1,2,0.3\n", "", "it has 1 epochs of 2"),
        ("metrics.csv", "0.3", "0,3", "tokenizing"),
        ("metrics.csv", "0.3", "0.x", "not all of ndcg@5 are numbers"),
        ("metrics.csv", "train,0", "train,", "an epoch lacks its stage, number or seconds"),
        ("metrics.csv", "train_seconds", "seconds", "it has no column train_seconds"),
    ],
)
def test_files_that_hold_something_else_are_named(folder, name, old, new, reason):
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DamagedFileError) as error:
        read_all(folder)
    assert error.value.path == path and reason in error.value.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank": [0, 1, 2]}, "not all ranks are whole numbers"),
        ({"rank": [1.5, 1, 2]}, "not all ranks are whole numbers"),
        ({"user_id": [["u1"], ["u2"], ["u3"]]}, "not all of user_id are text"),
        ({"more": [1, 2, 3]}, "its columns are user_id, item_id, rank, group, more"),
    ],
)
def test_ranks_that_are_none_are_named(folder, changes, reason):
    path = folder / "test_ranks.parquet"
    pd.read_parquet(path).assign(**changes).to_parquet(path, index=False)
    with pytest.raises(DamagedFileError, match=reason):
        RunRecord(folder).ranks()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [('"hit@5": 0.', '"hit@5": 0.1', "hit@5 is 0.1.*, the ranks say 0.666667"), ("hit@5", "hit@3", "it has no hit@5")],
)
def test_metrics_that_are_not_those_of_the_ranks_are_damage(folder, old, new, reason):
    (folder / "config.yaml").write_text("model: BPR\ndataset: toy\nmetrics: [Hit]\ntopk: [5]\n")
    assert RunRecord(folder).damage() is None
    path = folder / "result.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert re.search(reason, RunRecord(folder).damage().reason)


@pytest.mark.parametrize("name", ["metrics.csv", "environment.json"])
def test_a_device_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")
    with pytest.raises(DamagedFileError, match=f"{name} is damaged: .*not a regular file"):
        RunRecord(folder).check()


def test_missing_files_of_a_finished_run_are_damage(folder):
    for name in ("environment.json", "metrics.csv"):
        (folder / name).unlink()
        assert RunRecord(folder).damage().reason == "No such file or directory"


def test_settings_of_a_run(folder):
    (folder / "config.yaml").write_text("model: BPR\n")
    with pytest.raises(PerPEFTError, match="has no dataset: it is not the settings file of a run"):
        RunRecord(folder).settings()
    (folder / "config.yaml").write_text("model: BPR\ndataset: toy\nepochs: 2\n")
    assert RunRecord(folder).settings() == {"model": "BPR", "dataset": "toy", "epochs": 2}


def test_the_remedy_works(toy_settings, tmp_path):
    """A finished run that is resumed writes all its files anew, with the same numbers."""
    path = tmp_path / "mine"
    before = run("BPR", config_dict=toy_settings | {"run_folder": str(path)})
    files = {name: (path / name).read_bytes() for name in ("metrics.csv", "test_ranks.parquet")}
    for name in (*files, "result.json", "environment.json"):
        (path / name).write_bytes((path / name).read_bytes()[:-9])
    assert RunRecord(path).damage() is not None
    assert resume(path)["test_result"] == before["test_result"]
    assert RunRecord(path).damage() is None
    assert {name: (path / name).read_bytes() for name in files} == files
    assert json.loads((path / "result.json").read_text())["parameters"] == before["parameters"]


@pytest.mark.parametrize("bigger", [True, False])
def test_of_equal_scores_the_last_epoch_is_the_one_whose_model_is_kept(toy_settings, bigger):
    metric = "Hit@5" if bigger else "AveragePopularity@5"
    more = {"metrics": [metric.partition("@")[0]], "topk": [5], "valid_metric": metric}
    settings = toy_settings | more | {"learning_rate": 0.0, "epochs": 3}
    folder = Path(run("BPR", config_dict=settings)["run_folder"])
    kept = load_checkpoint(folder / "best.pth")["epoch"] + 1
    assert RunRecord(folder).valid_scores(metric, bigger).best_epoch == kept == 3
