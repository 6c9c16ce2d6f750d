"""Comparisons of tuned models; searches themselves are tested where they are."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare import compare
from recbole_perpeft.studies.compare.jobs import tuning
from recbole_perpeft.studies.compare.jobs.plan import plan
from recbole_perpeft.studies.compare.jobs.specs import parse_models
from support.attack.ground import in_one_process


@pytest.fixture
def shared(toy_settings):
    return {key: str(value) for key, value in toy_settings.items() if key != "dataset"} | {"epochs": "1"}


def searched(monkeypatch, best):
    """Notes what is searched for, in place of a search that finds `best`."""
    asked = []

    def search(model, dataset, space, files, settings, own, start):
        asked.append(SimpleNamespace(model=model, space=space, settings=settings, own=own, start=start))
        found = None if best is None else {"best_valid_score": 0.5}
        report = SimpleNamespace(
            folder=own.output, best=found, best_settings=best, parameters=tuple(space), n_trials=3, n_epochs=4
        )
        return SimpleNamespace(carry_out=lambda: report)

    monkeypatch.setattr(tuning, "NewSearch", search)
    return asked


def test_what_an_entry_sets_is_not_searched(shared, monkeypatch):
    specs = parse_models("Pop, BPR[embedding_size=16] as small, GlobalPEFT[peft_type=none, dropout_prob=0.0]")
    planned = plan(specs[:2], "toy", 2, config_dict=shared)
    asked = searched(monkeypatch, {"learning_rate": 0.5, "seed": 1})
    best, found = tuning.tuned(specs[:2], planned, 3, 2)
    (own,) = asked
    assert own.space.keys() == {"learning_rate", "weight_decay", "train_batch_size"}
    assert own.settings["embedding_size"] == 16 and own.settings["seed"] == 2026
    assert not own.space.keys() & own.settings.keys()
    assert (own.own.num_samples, own.own.max_concurrent) == (3, 2)
    assert best[0] == specs[0]
    assert best[1].settings == {"embedding_size": "16", "learning_rate": 0.5}
    assert [(each.name, each.n_trials, each.chosen) for each in found] == [("small", 3, {"learning_rate": 0.5})]
    # Entries of a dictionary go with the setting that chooses it.
    assert not {"peft_type", "dropout_prob"} & tuning._space(specs[2]).keys()
    assert "peft_config.r" in tuning._space(specs[2])


def test_the_first_trial_of_a_comparison_has_its_settings(shared, monkeypatch):
    asked = searched(monkeypatch, {"learning_rate": 0.5})
    specs = parse_models("BPR, GlobalPEFT[peft_type=none]")
    tuning.tuned(specs, plan(specs, "toy", 1, config_dict=shared | {"learning_rate": "0.03"}), 3, 1)
    assert [each.start["learning_rate"] for each in asked] == [0.03, 0.03]
    # The entry of a dictionary is not said apart from the method that has it.
    assert not {"peft_type", "peft_config"} & asked[1].start.keys()


def test_other_settings_have_a_folder_of_their_own(shared, monkeypatch):
    asked = searched(monkeypatch, {"learning_rate": 0.5})
    for change in ({}, {}, {"epochs": "2"}):
        specs = parse_models("BPR")
        tuning.tuned(specs, plan(specs, "toy", 1, config_dict=shared | change), 3, 1)
    first, second, third = (each.own.output for each in asked)
    assert first == second != third


def test_another_number_of_trials_is_another_search(shared, monkeypatch):
    asked = searched(monkeypatch, {"learning_rate": 0.5})
    specs = parse_models("BPR")
    for n_trials in 4, 32:
        tuning.tuned(specs, plan(specs, "toy", 1, config_dict=shared), n_trials, 1)
    assert asked[0].own.output != asked[1].own.output


def test_dictionaries_of_which_entries_are_searched():
    space = {"task_weights.direct": {"uniform": [0, 1]}, "peft_type": {"choice": ["lora"]}}
    space |= {"peft_config.r": {"choice": [4], "when": {"peft_type": "lora"}}}
    settings = {"task_weights": {"direct": 0.3, "sequential": 1.0}, "peft_config": {"r": 8}, "peft_type": "lora"}
    kept = tuning._first_values(settings | {"epochs": 3}, space)
    assert kept == {"task_weights": settings["task_weights"], "peft_type": "lora"}


def test_entries_that_no_trial_has_are_told(caplog):
    space = {"peft_config.r": {"choice": [4], "when": {"peft_type": "lora"}}}
    tuning._warn_of_entries("mine", {"peft_config": {"r": 8, "use_dora": True}}, space, ())
    assert "mine: peft_config.use_dora stays out of the search" in caplog.text and "config.r " not in caplog.text
    caplog.clear()
    tuning._warn_of_entries("mine", {"peft_config": {"r": 8}}, space, ())
    assert not caplog.text


def test_trials_of_runs_of_several_processes_have_as_many_and_as_many_at_a_time_as_fit(shared, monkeypatch):
    asked = searched(monkeypatch, {"learning_rate": 0.5})
    specs = parse_models("MoRec[adaptation=frozen, nproc=2]")
    tuning.tuned(specs, plan(specs, "toy", 1, config_dict=shared), 3, None)
    (one,) = asked
    assert (one.own.devices_per_trial, one.own.max_concurrent) == (2, 0) and "nproc" not in one.settings


def test_no_trial_succeeds(shared, monkeypatch):
    searched(monkeypatch, None)
    specs = parse_models("BPR")
    with pytest.raises(PerPEFTError, match="no trial of BPR has succeeded; see .*search-BPR-toy-"):
        tuning.tuned(specs, plan(specs, "toy", 1, config_dict=shared), 3, 1)


def test_a_tuned_comparison(shared, tmp_path, capsys, monkeypatch):
    """The chosen settings train the runs, and the report tells them."""
    searched(monkeypatch, {"reg_weight": 77.0})
    words = [
        "compare",
        "--models=Pop,EASE",
        "--dataset=toy",
        "--seeds=1",
        "--tune=3",
        f"--output={tmp_path / 'report'}",
    ]
    assert in_one_process([*words, *(f"--{key}={value}" for key, value in shared.items())]) == 0
    assert "How settings were chosen" in capsys.readouterr().out
    chosen = pd.read_csv(tmp_path / "report" / "tuning.csv").set_index("model")
    assert list(chosen.index) == ["EASE"]
    assert chosen.loc["EASE", ["trials", "epochs", "valid_score", "settings"]].tolist() == [
        3,
        4,
        0.5,
        "reg_weight=77.0",
    ]
    runs = pd.read_csv(tmp_path / "report" / "runs.csv").set_index("model")
    assert "reg_weight: 77.0" in Path(runs.loc["EASE", "run_folder"], "config.yaml").read_text()


def test_wrong_numbers_of_trials(shared):
    with pytest.raises(PerPEFTError, match="--tune is -1: it must be at least 0"):
        compare("BPR", "toy", n_trials=-1, config_dict=shared)
