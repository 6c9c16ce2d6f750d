"""A comparison under several splits."""

import dataclasses

import pandas as pd
import pytest
from scipy import stats

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.protocol import with_split
from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.jobs.plan import plan
from recbole_perpeft.studies.compare.jobs.specs import parse_models
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.studies.compare.report import write_report
from recbole_perpeft.studies.compare.splits import kendall, side_by_side


def under(record, split, order):
    """The record under a split where models have each other's runs."""
    runs = [model.runs for model in record.models]
    models = [dataclasses.replace(model, runs=runs[place]) for model, place in zip(record.models, order, strict=True)]
    return dataclasses.replace(record, plan=dataclasses.replace(record.plan, split=split), models=models)


def test_the_order_of_models_under_two_splits(toy_record, tmp_path):
    same, reverse = under(toy_record, "LS", [0, 1, 2]), under(toy_record, "GT", [2, 0, 1])
    table = kendall([same, reverse])
    means = [analysis.quality(each).query("metric == 'ndcg@5'")["mean"] for each in (same, reverse)]
    found = table.set_index("metric").loc["ndcg@5"]
    assert found["tau"] == pytest.approx(stats.kendalltau(*means).statistic) and found["models"] == 3
    assert kendall([same, under(toy_record, "RS", [0, 1, 2])]).set_index("metric")["tau"]["ndcg@5"] == 1
    (beside,) = side_by_side([same, reverse])
    assert beside.header == ["model", "LS", "GT"] and "Kendall's tau of the models' order: LS and GT" in beside.note
    assert kendall([toy_record]).empty and not side_by_side([toy_record])
    numbers = write_report(tmp_path, [same, reverse], "base")
    assert set(numbers["quality"]["split"]) == {"LS", "GT"} and len(pd.read_csv(tmp_path / "splits.csv")) == len(table)
    assert "## Splits side by side" in (tmp_path / "report.md").read_text()


def test_a_kind_of_split_says_what_the_settings_do_not():
    given = {"eval_args": {"split": {"GT": 0.5}, "target": "all", "mode": "uni5"}}
    assert with_split(given, "GT")["eval_args"] == given["eval_args"]
    assert with_split(given, "LS")["eval_args"] == {"split": {"LS": "valid_and_test"}, "target": None, "mode": "uni5"}
    with pytest.raises(PerPEFTError, match="--splits names 'LOO': choose among LS"):
        with_split({}, "LOO")


def test_runs_of_a_split_are_those_without_the_flag(toy_settings):
    shared = {key: str(value) for key, value in toy_settings.items() if key != "dataset"}
    specs = parse_models("Pop")
    alone, of_splits, at_one_time = (
        plan(specs, "toy", 1, (), shared, code_version="1", split=split).jobs[0] for split in (None, "LS", "GT")
    )
    assert alone.folder == of_splits.folder != at_one_time.folder
    assert str(at_one_time) == "Pop on toy split by GT, seed 2026"


@pytest.mark.parametrize("given", [5, {"split": "GT"}, "GT"])
def test_arguments_that_are_no_dictionary_are_named(given):
    with pytest.raises(PerPEFTError, match="eval_args is .*: it must be a dictionary such as"):
        with_split({"eval_args": given}, "LS")


def test_one_model_has_no_order(toy_runs, tmp_path):
    of_all, outcomes, *_ = toy_runs
    alone = collect(of_all, outcomes[:2])
    write_report(tmp_path, [under(alone, "LS", [0]), under(alone, "GT", [0])], "base")
    report = (tmp_path / "report.md").read_text()
    assert "Kendall" not in report and "nan" not in report
