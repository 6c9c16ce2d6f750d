"""How far groups are the same between seeds, and what becomes of them."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.studies.compare.stability import stability, stability_table


@pytest.fixture
def regrouped(toy_runs):
    """The runs of `good`: the second seed has other groups, users moved, groups chose."""
    plan, outcomes, *_ = toy_runs
    moves = [{"epoch": 1, "moved": 3, "rand_index": 0.5, "rand_index_first": 0.5}]
    moves += [{"epoch": 2, "moved": 1, "rand_index": 0.9, "rand_index_first": 0.4}]
    for outcome in outcomes:
        if outcome.job.spec.name == "good" and outcome.error is None:
            path = outcome.job.folder / "result.json"
            added = {"regroupings": moves, "group_best_epochs": [None, 4, 2]}
            path.write_text(json.dumps(json.loads(path.read_text()) | added))
            if outcome.job.seed == 2:
                path = outcome.job.folder / "test_ranks.parquet"
                table = pd.read_parquet(path)
                table["group"] = np.arange(len(table)) % 2
                table.to_parquet(path, index=False)
    return collect(plan, outcomes)


def test_groups_of_two_seeds(regrouped):
    (row,) = stability(regrouped).to_dict("records")
    groups = [regrouped.ranked.groups["good", seed] for seed in (1, 2)]
    assert row["model"] == "good" and row["groups"] == 2.5
    assert row["seeds"] == pytest.approx(adjusted_rand_score(*groups))
    assert row["regroupings"] == pytest.approx(0.7) and row["first"] == 0.4
    assert row["kept_global"] == pytest.approx(1 / 3)
    table = stability_table(regrouped)
    assert table.header[1:] == [
        *("groups", "between seeds", "at a regrouping", "last and first groups", "keep the global module")
    ]
    assert [cell.text for cell in table.rows[0]][-1] == "33%"


def test_the_same_groups_agree_and_nothing_is_shown_that_is_not_there(toy_record):
    (row,) = stability(toy_record).to_dict("records")
    assert row["seeds"] == 1.0 and np.isnan(row["regroupings"])
    assert stability_table(toy_record).header == ["model", "groups", "between seeds"]


def test_the_gain_of_a_group_has_an_interval(toy_record):
    table = analysis.by_group(toy_record, "base")
    gain = table["value"] - table["baseline"]
    assert (table["low"] < gain).all() and (gain < table["high"]).all()
    assert analysis.by_group(toy_record, "nobody")["low"].isna().all()
