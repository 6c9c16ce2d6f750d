"""What a search leaves behind; no Ray is started."""

import dataclasses
import json

import pandas as pd
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import run
from recbole_perpeft.studies.search.journal import TrialEntry
from recbole_perpeft.studies.search.report import write_report
from recbole_perpeft.studies.search.session import remove_lost_trials
from recbole_perpeft.studies.search.space import read_space
from recbole_perpeft.studies.search.trial import TrialPlan
from support.browser import needs_browser, shown


@pytest.fixture
def search(tmp_path, toy_settings):
    """A folder with two finished trials, one that was stopped and one that failed; their plan; the configuration."""
    (tmp_path / "space.yaml").write_text("learning_rate: {uniform: [1e-4, 0.1]}\nembedding_size: {choice: [8, 16]}\n")
    config = Config("BPR", config_dict=toy_settings)
    fixed = {key: config.external_config_dict[key] for key in toy_settings} | {"model": "BPR"}
    folder = tmp_path / "search"
    plan = TrialPlan(folder / "trials", read_space(tmp_path / "space.yaml"), fixed, config.to_dict(), True)
    for name, rate, status in (("a", 0.001, "finished"), ("b", 0.05, "finished"), ("c", 0.01, "stopped")):
        point = {"learning_rate": rate, "embedding_size": 64}  # the defaults of BPR are 0.001 and 64
        run(config_dict=fixed | point | {"run_folder": str(plan.folder / name / "run")}, with_test=False)
        if status == "stopped":
            (plan.folder / name / "run" / "result.json").unlink()
        TrialEntry(name, point, status, 1, ["node"]).write(plan.folder / name)
    TrialEntry("d", {"learning_rate": 0.1}, "failed", 3, ["node"], "it broke").write(plan.folder / "d")
    return folder, plan, config


def test_the_report_of_a_search(search):
    folder, plan, config = search
    report = write_report(folder, plan, config, n_trials=4, ended=True)
    assert sorted(report.table["trial"]) == ["a", "b", "c", "d"]
    assert report.table["score"].iloc[:3].is_monotonic_decreasing
    assert report.table.iloc[3]["error"] == "it broke"
    assert (report.n_epochs, report.max_epochs) == (9, 12)
    by_trial = report.table.set_index("trial")
    assert (report.unchanged, report.unchanged_score) == ("a", by_trial.loc["a", "score"])
    best = json.loads((folder / "result.json").read_text())
    assert best["trial"] == report.table["trial"][0]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Parameters and scores" in page and "Learning curves" in page and "it broke" in page
    assert "<script src" not in page and "<link" not in page
    assert len(pd.read_csv(folder / "trials.csv")) == 4
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"a", "b", "c"}


@needs_browser
def test_a_browser_runs_no_script_of_errors_and_values(search, tmp_path):
    folder, plan, config = search
    script = "<script>document.title='TAKEN'</script><img src=x onerror=\"document.title='TAKEN'\">"
    (tmp_path / "space.yaml").write_text(json.dumps({"learner": {"choice": ["adam", script]}}))
    plan = dataclasses.replace(plan, space=read_space(tmp_path / "space.yaml"))
    for name, learner in (("a", "adam"), ("b", script), ("c", script)):
        TrialEntry(name, {"learner": learner}, "finished", 1, ["node"]).write(plan.folder / name)
    TrialEntry("d", {"learner": script}, "failed", 3, [script], script).write(plan.folder / "d")
    write_report(folder, plan, config, n_trials=4, ended=True)
    page = shown(folder / "report.html", tmp_path / "profile", milliseconds=10_000)
    assert "TAKEN" not in page.split("</title>")[0]
    body = page.split("<body>", 1)[1]
    assert 'class="main-svg"' in body and body.count("&lt;script&gt;document.title") >= 2


def test_a_trial_with_a_damaged_record_is_told_and_left_out(search):
    folder, plan, config = search
    best = write_report(folder, plan, config, n_trials=4, ended=False).best["trial"]
    path = plan.folder / best / "run" / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-4])
    report = write_report(folder, plan, config, n_trials=4, ended=True)
    assert report.best["trial"] != best and len(report.table) == 4
    error = report.table.set_index("trial").loc[best, "error"]
    assert error == f"{path} is damaged: its last line is cut off; the trial is left out"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", "{", "Expecting"),
        ("result.json", "[]", "it is no JSON object"),
        ("trials/a/trial.json", '{"name": "a"}', "it has no parameters"),
        ("trials/a/trial.json", "", "Expecting value"),
    ],
)
def test_damaged_files_of_a_search_are_named(search, name, content, reason):
    folder, plan, config = search
    write_report(folder, plan, config, n_trials=4, ended=True)
    (folder / name).write_text(content)
    with pytest.raises(PerPEFTError) as error:
        write_report(folder, plan, config, n_trials=4, ended=True)
    assert str(error.value).startswith(f"{folder / name} is damaged: {reason}")


def test_trials_that_ray_does_not_know_are_removed(tmp_path):
    for name in ("known", "lost"):
        TrialEntry(name, {}).write(tmp_path / name)
    remove_lost_trials(tmp_path, {"known", "not begun"})
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


def test_best_settings_repeat_the_best_trial(search, tmp_path, toy_settings):
    folder, plan, config = search
    report = write_report(folder, plan, config, n_trials=4, ended=True)
    places = {key: toy_settings[key] for key in ("data_path", "cache_folder")} | {"runs_folder": str(tmp_path / "r")}
    again = run(config_file_list=[folder / "best.yaml"], config_dict=places)
    assert again["best_valid_score"] == report.best["best_valid_score"]
    assert again["test_result"] == report.best["test_result"]


def test_the_test_items_are_looked_at_once_and_only_at_the_end(search, monkeypatch):
    folder, plan, config = search
    calls = []
    monkeypatch.setattr(
        "recbole_perpeft.studies.search.report.metrics_on_test",
        lambda *arguments: calls.append(arguments) or {"hit@5": 0.5},
    )
    assert write_report(folder, plan, config, n_trials=4, ended=False).best["test_result"] is None
    assert calls == [] and not (folder / "result.json").exists()
    for _ in range(2):
        assert write_report(folder, plan, config, n_trials=4, ended=True).best["test_result"] == {"hit@5": 0.5}
    assert len(calls) == 1


def test_trials_leave_no_test_metrics(search):
    _, plan, _ = search
    assert json.loads((plan.folder / "a" / "run" / "result.json").read_text())["test_result"] == {}
    assert not (plan.folder / "a" / "run" / "test_ranks.parquet").exists()


def test_a_search_without_a_model_is_an_error(tmp_path, search):
    _, plan, config = search
    folder = tmp_path / "failed"
    TrialEntry("d", {"learning_rate": 0.1}, "failed", 3, [], "it broke").write(folder / "trials" / "d")
    empty = TrialPlan(folder / "trials", plan.space, plan.settings, plan.defaults, True)
    with pytest.raises(PerPEFTError, match="found nothing: it broke"):
        write_report(folder, empty, config, n_trials=1, ended=True)
    assert (folder / "report.html").is_file()


def test_epochs_can_be_searched_over(search, tmp_path):
    folder, plan, config = search
    (tmp_path / "space.yaml").write_text("epochs: {choice: [1, 3]}\n")
    for name, epochs in (("a", 1), ("b", 3)):
        TrialEntry(name, {"epochs": epochs}, "finished", 1, ["node"]).write(plan.folder / name)
    searched = dataclasses.replace(plan, space=read_space(tmp_path / "space.yaml"))
    table = write_report(folder, searched, config, n_trials=4, ended=False).table.set_index("trial")
    assert table.loc["a", "epochs"] == 1 and table.loc["a", "trained_epochs"] == 3
