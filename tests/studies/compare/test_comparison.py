"""Whole comparisons, with real processes: they are few because each starts Python and PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import run
from recbole_perpeft.studies.compare import compare
from recbole_perpeft.studies.compare.jobs.plan import plan
from recbole_perpeft.studies.compare.jobs.runs import carry_out
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec, parse_models
from recbole_perpeft.training.trainer import RunTrainer
from support.attack.ground import runs_here

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shared(toy_settings):
    return {key: str(value) for key, value in toy_settings.items() if key != "dataset"}


def test_a_comparison_goes_on_and_has_the_numbers_of_single_runs(toy_settings, shared, tmp_path, capfd):
    flags = [f"--{key}={value}" for key, value in shared.items()]
    # A learning rate that ruins the model: its run fails, the other does not.
    models = "BPR, BPR[learning_rate=1e38, learner=sgd] as broken"
    arguments = [
        f"--models={models}",
        "--dataset=toy",
        "--seeds=1",
        "--code_version=1",
        f"--output={tmp_path / 'report'}",
        *flags,
    ]
    assert main(["compare", *arguments, "--only=BPR"]) == 0
    first = capfd.readouterr()
    assert "[1/1] BPR on toy, seed 2026: done" in first.err and "### Quality" in first.out

    assert main(["compare", *arguments]) == 1
    second = capfd.readouterr()
    assert "BPR on toy, seed 2026: finished before" in second.err
    assert "broken on toy, seed 2026: failed: the training loss is" in second.err
    assert "| broken | 2026 | the training loss is" in second.out

    single = run("BPR", config_dict=toy_settings | {"dataset": "toy"})
    rows = pd.read_csv(tmp_path / "report" / "runs.csv").set_index("model")
    for metric, value in single["test_result"].items():
        assert rows.loc["BPR", metric] == value
    ranks = [
        pd.read_parquet(Path(folder) / "test_ranks.parquet").set_index("user_id")["rank"]
        for folder in (rows.loc["BPR", "run_folder"], single["run_folder"])
    ]
    pd.testing.assert_series_equal(*ranks)


def test_an_interrupted_run_goes_on(toy_settings, shared, monkeypatch):
    job = plan(parse_models("SASRec"), "toy", 1, config_dict=shared).jobs[0]
    finish = RunTrainer._finish_epoch

    def stop_after_two(trainer, row, train_data):
        finish(trainer, row, train_data)
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunTrainer, "_finish_epoch", stop_after_two)
        carry_out(job.folder, dict(job.settings))
    assert len(pd.read_csv(job.folder / "metrics.csv")) == 2 and not (job.folder / "result.json").exists()
    assert carry_out(job.folder, dict(job.settings)) is None
    result = json.loads((job.folder / "result.json").read_text())
    assert result["epochs"] == 3
    assert result["test_result"] == run("SASRec", config_dict=toy_settings)["test_result"]
    written = (job.folder / "result.json").stat().st_mtime_ns
    assert carry_out(job.folder, dict(job.settings)) is None  # a finished run is left alone
    assert (job.folder / "result.json").stat().st_mtime_ns == written
    before = {name: (job.folder / name).read_bytes() for name in ("metrics.csv", "test_ranks.parquet")}
    for name, content in before.items():  # a damaged one is not
        (job.folder / name).write_bytes(content[:-9])
    assert carry_out(job.folder, dict(job.settings)) is None
    assert {name: (job.folder / name).read_bytes() for name in before} == before
    assert json.loads((job.folder / "result.json").read_text())["test_result"] == result["test_result"]


def test_what_the_report_needs_from_a_run_with_groups(aspects_settings):
    settings = {key: str(value) for key, value in aspects_settings.items() if key != "dataset"}
    settings |= {"epochs": "1", "epochs_global": "1", "min_group_size": "1"}
    job = plan(parse_models("PerPEFT"), "aspects", 1, config_dict=settings).jobs[0]
    assert carry_out(job.folder, dict(job.settings)) is None
    ranks = pd.read_parquet(job.folder / "test_ranks.parquet")
    assert list(ranks.columns) == ["user_id", "item_id", "rank", "group"]
    assert ranks["group"].between(0, 2).all() and ranks["group"].nunique() > 1
    result = json.loads((job.folder / "result.json").read_text())
    seconds = pd.read_csv(job.folder / "metrics.csv")["train_seconds"]
    assert result["median_epoch_seconds"] == pytest.approx(np.median(seconds))
    assert result["peak_gpu_memory_mb"] is None


def test_a_fault_in_a_model_is_told(shared, monkeypatch, capsys):
    job = plan(parse_models("BPR"), "toy", 1, config_dict=shared).jobs[0]
    monkeypatch.setattr(RunTrainer, "fit", lambda *arguments, **options: {}["nothing"])
    assert carry_out(job.folder, dict(job.settings)) == "KeyError: 'nothing'"
    assert "Traceback" in capsys.readouterr().err


def test_memory_of_the_parent_does_not_count():
    """A process begins with its parent's `ru_maxrss`."""
    code = """
import subprocess, sys
block = bytearray(900_000_000)
block[::4096] = b"1" * len(block[::4096])
code = "from recbole_perpeft.runs.folder import peak_memory_mb; print(peak_memory_mb())"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert 50 < float(run.stdout) < 800


def test_a_comparison_from_python(shared, tmp_path):
    models = ["Pop", ModelSpec("other", "Pop", {"train_batch_size": 32})]
    with runs_here():
        found = compare(models, "toy", tmp_path / "report", 1, config_dict=shared)
    assert found.folder == tmp_path / "report" and (found.baseline, found.failures) == ("Pop", [])
    for name, table in found.tables.items():
        assert table.to_csv(index=False) == (found.folder / f"{name}.csv").read_text()
    quality = found.tables["quality"].pivot(index="model", columns="metric", values="mean")
    assert list(quality.index) == ["Pop", "other"] and quality.loc["Pop"].equals(quality.loc["other"])


def test_controls_splits_and_lists_in_one_command(aspects_settings, tmp_path, capfd):
    settings = {key: str(value) for key, value in aspects_settings.items() if key != "dataset"} | {"epochs": "1"}
    models, controls = "Pop, ContentKNN as KNN", ("content of other items", "noise for content", "titles alone")
    for split, has_controls in (("LS", True), ("GT", False)):  # finished here, so that the command starts no process
        made = plan(parse_models(models), "aspects", 1, (), settings, None, "1", split, has_controls)
        for job in made.jobs:
            assert carry_out(job.folder, dict(job.settings)) is None
    had = (
        pd.read_csv(f"{aspects_settings['data_path']}/aspects/aspects.inter", sep="\t")
        .groupby("user_id:token")
        .tail(1)
    )
    targets = had[["user_id:token", "item_id:token"]].set_axis(["user", "item"], axis=1).assign(score=1.0)
    targets.to_csv(tmp_path / "known.csv", index=False)
    words = [f"--models={models}", "--dataset=aspects", "--seeds=1", "--code_version=1"]
    words += [f"--{key}={value}" for key, value in settings.items()]

    report = tmp_path / "report"
    assert (
        main(["compare", *words, "--controls", f"--lists={tmp_path / 'known.csv'} as known", f"--output={report}"])
        == 0
    )
    quality = pd.read_csv(report / "quality.csv").query("metric == 'ndcg@10'").set_index("model")["mean"]
    assert {"Pop", "KNN", "known", *(f"KNN, {each}" for each in controls)} < set(quality.index)
    assert quality["known"] == 1 and "known" in (report / "report.md").read_text()

    assert main(["compare", *words, "--splits=LS,GT", f"--output={report}-splits"]) == 0
    splits = pd.read_csv(tmp_path / "report-splits" / "splits.csv")
    assert set(splits["metric"]) >= {"ndcg@10"} and "finished before" in capfd.readouterr().err
    tables = pd.read_csv(tmp_path / "report-splits" / "quality.csv")
    assert set(tables["split"]) == {"LS", "GT"} and set(tables["model"]) == {"Pop", "KNN"}


def test_a_report_that_cannot_be_written_is_told_before_the_runs(shared, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PerPEFTError, match="--output is .*is a file; name another folder"):
            compare(parse_models("Pop"), ["toy"], output, 1, config_dict=shared)


def test_no_run_succeeds(shared, tmp_path, monkeypatch):
    from recbole_perpeft.studies.compare import comparison
    from recbole_perpeft.studies.compare.jobs.runs import Outcome

    monkeypatch.setattr(comparison, "carry_out_all", lambda jobs, *rest: [Outcome(job, "no luck") for job in jobs])
    with pytest.raises(PerPEFTError, match="no run succeeded:\n  BPR on toy, seed 2026: no luck"):
        compare(parse_models("BPR"), ["toy"], tmp_path / "report", 1, config_dict=shared)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the models: --models=SASRec,PerPEFT"),
        (["--models=BPR", "--model=BPR"], "--model is for one model"),
        (["--models=SASRek"], "did you mean SASRec"),
        (["--models=BPR", "--seeds=many"], "--seeds is 'many': it must be a whole number"),
        (["--models=BPR", "--seeds=0"], "--seeds is 0"),
        (["--models=BPR", "--parallel=0"], "--parallel is 0"),
        (["--models=BPR", "--baseline=Pop"], "no model of the comparison is named 'Pop'; there are BPR"),
        (["--models=BPR", "--only=Pop"], "no model of the comparison is named 'Pop'"),
        (["--models=BPR[topk=[1]]"], "sets topk"),
        (["--models=BPR", "--epocks=3"], "did you mean 'epochs'"),
        (["BPR"], "cannot make sense of 'BPR'"),
    ],
)
def test_wrong_command_lines(words, message, capsys):
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")


def test_help(capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--models=LIST" in text and "@aspects" in text and "{model: MODEL, key: value}" in text
    assert main(["compare", "--list_models"]) == 0
    assert "PerPEFT" in capsys.readouterr().out
