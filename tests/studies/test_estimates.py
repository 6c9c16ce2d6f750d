"""Estimates of comparisons and searches: sums over their runs, of which one of each kind is measured."""

import pytest

from recbole_perpeft.cli.main import main
from recbole_perpeft.runs.estimate import Estimate
from recbole_perpeft.studies.compare import comparison
from recbole_perpeft.studies.search import session


@pytest.fixture
def measured(monkeypatch):
    """Settings of what is measured, which takes 10 seconds, 500 MB of memory and 2 MB of disk."""
    orders = []

    def stub(settings, with_test=True):
        orders.append((settings, with_test))
        return Estimate(f"{settings['model']} on toy", start=10.0, memory_mb=500.0, disk_mb=2.0)

    monkeypatch.setattr(comparison, "estimate_apart", stub)
    monkeypatch.setattr(session, "estimate_apart", stub)
    return orders


@pytest.fixture
def words(toy_settings):
    return [f"--{key}={value}" for key, value in toy_settings.items()]


def test_a_comparison_is_the_sum_of_the_runs_that_are_not_finished(measured, words, tmp_path, monkeypatch, capsys):
    compare = ["compare", "--models=Pop, BPR[embedding_size=8] as small", "--seeds=3", *words, "--estimate"]
    folder = tmp_path / "report"
    assert main([*compare, "--parallel=2", f"--output={folder}"]) == 0
    out = capsys.readouterr().out
    assert [settings["model"] for settings, _ in measured] == ["Pop", "BPR"] and all(test for _, test in measured)
    assert measured[1][0]["embedding_size"] == 8 and measured[0][0]["seed"] == 2026
    assert "small on toy" in out and "all, 2 at a time" in out and "30.0 s" in out and "1,000 MB" in out
    assert "finished" not in out and not folder.exists() and not (tmp_path / "runs").exists()
    monkeypatch.setattr(comparison, "cpu_count", lambda: 4)
    assert main([*compare, "--workers=ray"]) == 0  # not all six at a time, but as many as fit
    assert "all, 4 at a time" in capsys.readouterr().out
    monkeypatch.setattr(comparison.RunRecord, "finished", property(lambda run: "Pop" in run.folder.name))
    assert main(compare) == 0
    out = capsys.readouterr().out
    assert "Pop" not in out and "3 of 6 runs are finished and used again" in out


def test_a_search_is_the_sum_of_its_trials(measured, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "cpu_count", lambda: 4)
    space = tmp_path / "space.yaml"
    space.write_text("learning_rate: {loguniform: [1e-4, 1e-2]}\n")
    search = ["search", "--model=BPR", f"--search={space}", "--num_samples=8", "--cpus=2", *words, "--estimate"]
    folder = tmp_path / "search"
    assert main([*search, f"--output={folder}"]) == 0
    out = capsys.readouterr().out
    assert "trial of BPR on toy" in out and "40.0 s" in out and "1,000 MB" in out and "asha stops trials early" in out
    assert [with_test for _, with_test in measured] == [False] and not folder.exists()
    search[1:2] = ["--model=MoRec", "--adaptation=frozen", "--devices_per_trial=2"]
    assert main([*search, f"--output={folder}"]) == 0
    out = capsys.readouterr().out
    assert "one after the other" in out and "a trial is measured on one device" in out and measured[1][0]["nproc"] == 2
    assert main(["search", "--resume=x", "--estimate"]) == 2
    assert "--estimate is for a new search" in capsys.readouterr().err


def test_a_run_prints_its_estimate(words, toy_path, capsys):
    assert main(["train", "--model=Pop", *words, "--estimate"]) == 0
    out = capsys.readouterr().out
    assert "Pop on toy" in out and "without early stopping" in out and not (toy_path / "runs").exists()
    assert main(["train", "--resume=x", "--estimate"]) == 2
    assert "--estimate is for a new run" in capsys.readouterr().err
    assert main(["train", "--estimate=perhaps"]) == 2
