"""Figures of lists in a comparison's tables."""

import json

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare.beyond import beyond, beyond_by_group, beyond_by_group_table, beyond_table
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.studies.compare.report import write_report


def with_lists(outcome, **more):
    file = outcome.job.folder / "result.json"
    seed = outcome.job.seed
    lists = {"coverage@5": seed / 10, "gini@5": 0.5, "popularity@5": 12.0, "diversity@5": 0.25, "coverage@10": 0.9}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test_lists": lists, **more}))


@pytest.fixture
def toy_lists(toy_runs):
    """The comparison `toy_runs`, whose finished runs have figures of lists; only `good` has groups."""
    plan, outcomes, *_ = toy_runs
    for outcome in outcomes[:-1]:
        name = outcome.job.spec.name
        groups = [{"group": group, "lists": 20, "coverage@5": group / 10, "diversity@5": 0.5} for group in range(2)]
        encoder = "other" if name == "base" and outcome.job.seed == 2 else "clip"
        more = {"test_lists_by_group": groups} if name == "good" else {}
        with_lists(outcome, diversity_encoder=encoder, **more)
    return plan, outcomes


def test_figures_are_means_over_seeds_and_of_one_encoder(toy_lists, tmp_path):
    record = collect(*toy_lists)
    table = beyond(record).set_index(["model", "figure"])
    row = table.loc["good", "coverage@5"]
    assert (row["seeds"], row["mean"], row["sd"]) == (2, pytest.approx(0.15), pytest.approx(0.05 * 2**0.5))
    assert table.loc[("base", "diversity@5"), "seeds"] == 1 and table.loc[("good", "diversity@5"), "seeds"] == 2
    text = beyond_table(record).to_markdown()
    assert "| good | 15.0% ± 7.1% | 0.5000 ± 0.0000 | 12.0 ± 0.0 | 0.2500 ± 0.0000 |" in text
    assert "untouched encoder clip" in text and "lists of 5 items" in text and "90" not in text
    groups = beyond_by_group(record)
    assert len(groups) == 4 and groups["model"].unique().tolist() == ["good"]
    assert "| good | 1 | 20 | 10.0% | 0.5000 |" in beyond_by_group_table(record).to_markdown()
    files = write_report(tmp_path / "report", [record], "base")
    assert {"beyond", "beyond_groups"} <= files.keys()
    assert "Beyond accuracy by user group" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_runs_without_figures_have_no_table(toy_record):
    assert beyond(toy_record).empty and beyond_by_group(toy_record).empty
    assert not beyond_table(toy_record).rows and not beyond_by_group_table(toy_record).rows


@pytest.mark.parametrize("damage", [{"test_lists": [1]}, {"test_lists_by_group": [{"group": 0, "lists": "many"}]}])
def test_damaged_figures_are_told(toy_runs, damage):
    plan, outcomes, *_ = toy_runs
    file = outcomes[0].job.folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(PerPEFTError, match="figures of the test lists are"):
        collect(plan, outcomes)
