import json
import re

import pandas as pd
import pytest

from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.studies.compare.report import write_report
from recbole_perpeft.studies.compare.sections import plots, protocol_sentence, tables
from recbole_perpeft.studies.compare.statistics import paired_test
from recbole_perpeft.training.rank_metrics import metric_of_ranks
from support.browser import needs_browser, shown


@pytest.fixture
def report(toy_record, tmp_path):
    folder = tmp_path / "new" / "report"
    write_report(folder, [toy_record], "base")
    return folder


def test_files_of_a_report(report, toy_record):
    tables_of_numbers = {
        "runs",
        "quality",
        "intervals",
        "significance",
        "cost",
        "history",
        "popularity",
        "groups",
        "stability",
    }
    names = {f"{name}.csv" for name in tables_of_numbers} | {"report.md", "report.html", "tables.tex", "ranks.parquet"}
    assert {path.name for path in report.iterdir()} == names
    quality = pd.read_csv(report / "quality.csv")
    pd.testing.assert_frame_equal(quality.drop(columns="dataset"), analysis.quality(toy_record))
    runs = pd.read_csv(report / "runs.csv")
    assert len(runs) == 7 and runs["error"].dropna().tolist() == ["the loss is not finite"]


def test_tables_of_an_earlier_comparison_are_gone(report, toy_runs):
    plan, outcomes, *_ = toy_runs
    (report / "splits.csv").write_text("dataset\n")
    (report / "mine.csv").write_text("stays\n")
    write_report(report, [collect(plan, outcomes[:2])], "base")
    assert not {"splits.csv", "significance.csv", "groups.csv"} & {path.name for path in report.iterdir()}
    assert (report / "mine.csv").exists()


def test_groups_are_those_of_the_first_seed_of_each_model(toy_runs):
    plan, outcomes, *_ = toy_runs
    kept = [outcome for outcome in outcomes if (outcome.job.spec.name, outcome.job.seed) != ("good", 1)]
    record = collect(plan, kept)
    (groups,) = [table for table in tables(record, "base") if table.title == "By user group"]
    assert len(groups.rows) == 3


def test_significance_from_the_ranks_of_a_report(report, toy_record):
    ranks = pd.read_parquet(report / "ranks.parquet")
    assert len(ranks) == 6 * 60
    ranks["ndcg"] = metric_of_ranks("ndcg@5", ranks["rank"].to_numpy())
    users = ranks.pivot_table(index="user", columns="model", values="ndcg", observed=True)
    expected = analysis.significance(toy_record, "base").set_index(["model", "metric"]).loc[("good", "ndcg@5"), "p_t"]
    assert paired_test(users["good"].to_numpy(), users["base"].to_numpy()).p_t == pytest.approx(expected)


def test_tables_of_a_report(report, toy_record):
    titles = [table.title for table in tables(toy_record, "base")]
    assert titles == [
        "Runs that failed",
        "Quality",
        "Against base",
        "Cost",
        "By length of the user's history",
        "By popularity of the target",
        "By user group",
        "Stability of groups",
    ]
    text = (report / "report.md").read_text()
    assert all(f"### {title}" in text for title in titles)
    best = analysis.quality(toy_record).query("metric == 'ndcg@5'").set_index("model").loc["good"]
    assert f"**{best['mean']:.4f} ± {best['sd']:.4f}**" in text
    assert "mask_history all" in text and "| good | 3 | the loss is not finite |" in text
    latex = (report / "tables.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == len(titles)
    # Of the Gini index the least is the best; here all are alike.
    assert "**0.5000 ± 0.0000**" in text


def test_groups_that_keep_the_global_module_are_named(toy_runs):
    plan, outcomes, *_ = toy_runs
    (first,) = [outcome.job for outcome in outcomes if (outcome.job.spec.name, outcome.job.seed) == ("good", 1)]
    file = first.folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"group_best_epochs": [2, None, None]}))
    (note,) = (table.note for table in tables(collect(plan, outcomes), "base") if table.title == "By user group")
    assert "Groups of good that keep the global module: 1, 2." in note


def test_plots_of_a_report(toy_record):
    figures = plots(toy_record, "base")
    assert list(figures) == [
        "Quality against trainable parameters",
        "Quality against seconds an epoch",
        "Learning curves",
        "Group sizes",
    ]
    quality = analysis.quality(toy_record).query("metric == 'ndcg@5'").set_index("model")
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in figures["Quality against trainable parameters"].data}
    assert points["good"] == (1000, pytest.approx(quality.loc["good", "mean"]))
    curves = figures["Learning curves"].data
    assert len(curves) == 6 and list(curves[0].x) == [2] and list(curves[0].y) == [0.3]
    assert [list(trace.y) for trace in figures["Group sizes"].data] == [[20, 20, 20]] * 2
    assert curves[-1].name == "&lt;b&gt;|&amp;_{odd}"  # plotly reads names as HTML


def test_the_page_needs_no_network(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= 4
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "&lt;b&gt;|&amp;_{odd}" in page and "<b>|&_{odd}" not in re.sub(
        r"<script.*?</script>", "", page, flags=re.S
    )


@needs_browser
def test_the_page_in_a_browser(report, tmp_path):
    body = shown(report / "report.html", tmp_path / "profile", milliseconds=20_000).split("<body>", 1)[1]
    assert body.count('class="main-svg"') >= 4
    drawn = re.sub(r"<script.*?</script>", "", body, flags=re.S)
    # The axes and the points are there, not just empty boxes.
    assert "test NDCG@5" in drawn and "group, the largest first" in drawn
    assert len(re.findall(r'<path class="point"', drawn)) >= 6


def test_the_protocol_names_the_parts_that_count():
    arguments = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "full", "test": "full"}}
    protocol = {"eval_args": arguments, "mask_history": "all", "stopping_step": 5, "valid_metric": "NDCG@20"}
    assert protocol_sentence(protocol).startswith("Split LS valid_and_test in the order TO; candidates: full,")
    given = protocol_sentence(protocol | {"benchmark_filename": ["train", "valid", "test"]})
    assert given.startswith("Parts as they are given (train, valid, test); candidates: full,")
