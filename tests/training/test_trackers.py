"""Trackers hear of every epoch and of the result; the real libraries where they are installed."""

import csv
import json
import logging
import sys
from pathlib import Path

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import load, resume, run
from recbole_perpeft.training.trackers import TRACKERS, Tracker, chosen_trackers, tracked

ROWS = [
    {"stage": "train", "epoch": 0, "train_loss": 2.0, "train_seconds": 0.1},
    {"stage": "train", "epoch": 1, "train_loss": 1.5, "train_seconds": 0.1, "ndcg@20": 0.25, "valid_seconds": 0.2},
]
RESULT = {"test_result": {"ndcg@20": 0.125}}
real = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is theirs


class Settings(dict):
    """What trackers read of a configuration."""

    def __init__(self, tmp_path, *trackers, **more):
        places = {"runs_folder": str(tmp_path / "runs"), "model": "BPR", "dataset": "toy", "wandb_project": "p"}
        super().__init__({"trackers": [*trackers], "log_wandb": False} | places | more)

    def to_dict(self):
        return {f"key{number}": "x" * number for number in range(0, 1200, 10)} | dict(self)


def told(tmp_path, name, failing=False, rows=ROWS):
    """A run that one tracker hears of; what it adds to the result."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tracked(Settings(tmp_path, name), folder) as trackers:
            for row in rows:
                trackers.epoch(row)
            if failing:
                raise KeyError("the run fails")
            return trackers.result(RESULT)
    except KeyError:
        return None


@real
def test_mlflow_has_parameters_epochs_and_result_and_goes_on_with_the_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    assert told(tmp_path, "mlflow", failing=True, rows=ROWS[:1]) is None
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("recbole_perpeft").experiment_id
    assert [found.info.status for found in client.search_runs([experiment])] == ["FAILED"]
    assert told(tmp_path, "mlflow", rows=ROWS[1:]) == {}
    (found,) = client.search_runs([experiment])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "one")
    assert found.data.params["model"] == "BPR" and len(found.data.params["key1000"]) == 500
    assert found.data.metrics == {
        "train_loss": 1.5,
        "train_seconds": 0.1,
        "valid_seconds": 0.2,
        "valid/ndcg_at_20": 0.25,
        "test/ndcg_at_20": 0.125,
    }
    assert [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, "train_loss")] == [
        (0, 2.0),
        (1, 1.5),
    ]


@real
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")  # it would keep the streams of this test for those that follow
    logged, log = [], wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data, **how: (logged.append(data), log(run, data, **how))[1])
    assert told(tmp_path, "wandb") == {} and wandb.run is None
    assert [{name: each[name] for name in each if "/" in name} for each in logged] == [
        {"train/epoch": 0, "train/train_loss": 2.0, "train/train_seconds": 0.1},
        {"train/epoch": 1, "train/train_loss": 1.5, "train/train_seconds": 0.1},
        {"valid/ndcg@20": 0.25},
    ]
    run_id = json.loads((tmp_path / "runs" / "one" / "trackers.json").read_text())["wandb"]
    assert [*(tmp_path / "runs" / "one" / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")]


@real
@pytest.mark.parametrize("country", ["FRA", None])
def test_codecarbon_measures_energy(tmp_path, monkeypatch, country):
    pytest.importorskip("codecarbon", reason="CodeCarbon is not installed")
    monkeypatch.chdir(tmp_path)
    if country:
        monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", country)
    found = told(tmp_path, "codecarbon")
    assert found["energy_kwh"] > 0 and ("emissions_kg" in found) == (country is not None)
    with (tmp_path / "runs" / "one" / "emissions.csv").open() as file:
        assert [row["project_name"] for row in csv.DictReader(file)] == ["one"]


def test_a_run_tells_its_tracker_of_every_epoch_and_takes_what_it_adds(toy_settings, monkeypatch, caplog):
    heard = []

    class Mine(Tracker):
        def __init__(self, config, folder, ids):
            heard.append(("start", dict(ids)))
            ids["mine"] = "7"

        def epoch(self, row):
            heard.append(row["epoch"])
            if row["epoch"] == 2:
                raise OSError("the line is dead")

        def result(self, result):
            return {"heard": len(heard)}

    monkeypatch.setattr(TRACKERS, "_added", {"mine": Mine})
    for name in ("mlflow", "wandb", "codecarbon"):  # none of them is imported
        monkeypatch.setitem(sys.modules, name, None)
    result = run("BPR", config_dict=toy_settings | {"trackers": "mine", "epochs": 2})
    folder = result["run_folder"]
    assert heard == [("start", {}), 0, 1] and result["heard"] == 3
    with caplog.at_level(logging.WARNING):
        longer = resume(folder, {"epochs": 4})
    assert heard[3:] == [("start", {"mine": "7"}), 2] and "heard" not in longer
    assert "the tracker mine is left out from here on: the line is dead" in caplog.text
    monkeypatch.setattr(TRACKERS, "_added", {})
    assert load(folder)[0]["trackers"] is None  # a model needs no tracker
    with pytest.raises(PerPEFTError, match="trackers is 'mine', which does not exist"):
        resume(folder)


def test_without_tensorboard_there_are_no_events(toy_settings):
    folder = Path(run("Pop", config_dict=toy_settings | {"trackers": None})["run_folder"])
    assert not (folder / "tensorboard").exists() and not (folder / "trackers.json").exists()


def test_names_and_packages_are_checked_before_anything_starts(toy_settings, monkeypatch, tmp_path):
    assert chosen_trackers(Settings(tmp_path, trackers=" tensorboard, tensorboard ")) == ["tensorboard"]
    with pytest.raises(
        PerPEFTError, match="trackers is 'tensorbord', which does not exist: did you mean 'tensorboard'"
    ):
        Config("BPR", config_dict=toy_settings | {"trackers": ["tensorbord"]})
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        PerPEFTError, match=r"mlflow needs the package mlflow: pip install 'recbole-perpeft\[mlflow\]'"
    ):
        Config("BPR", config_dict=toy_settings | {"trackers": "mlflow"})


def test_one_that_cannot_start_ends_the_run_and_those_that_have(tmp_path, monkeypatch):
    ended = []

    class First(Tracker):
        def close(self, failed):
            ended.append(failed)

    class Second(Tracker):
        def __init__(self, config, folder, ids):
            raise ValueError("no\nkey")

    monkeypatch.setattr(TRACKERS, "_added", {"first": First, "second": Second})
    (tmp_path / "trackers.json").write_text("[")
    with pytest.raises(PerPEFTError, match="trackers: second cannot start: no key; mend it, or leave it out"):
        with tracked(Settings(tmp_path, "first", "second"), tmp_path):
            pass
    assert ended == [True]
