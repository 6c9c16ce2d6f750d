"""Lists of other tools: the same ranks as a model that scores so."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.data.split import RowHistories
from recbole_perpeft.runs.run import run
from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.jobs.plan import TestRows, plan
from recbole_perpeft.studies.compare.jobs.runs import Outcome
from recbole_perpeft.studies.compare.jobs.specs import parse_models
from recbole_perpeft.studies.compare.lists import list_run, parse_lists, ranks_of_lists
from recbole_perpeft.studies.compare.records import collect
from recbole_perpeft.studies.compare.report import write_report
from recbole_perpeft.training.ranks import target_ranks

N_USERS, N_ITEMS = 4, 6


def random_rows(rng):
    lengths = rng.integers(0, 5, N_USERS)
    log = HistoryIndex(np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, N_ITEMS, lengths.sum()))
    users = rng.integers(0, N_USERS, 8)
    return TestRows(users, rng.integers(0, N_ITEMS, 8), RowHistories(log, users, rng.integers(0, lengths[users] + 1)))


@pytest.mark.parametrize("mask", ["all", "keep_target", "none"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=50)
def test_ranks_are_those_of_a_model_with_these_scores(mask, seed):
    rng = np.random.default_rng(seed)
    rows, scores = random_rows(rng), rng.integers(0, 3, (N_USERS, N_ITEMS)).astype(float)
    on_list = rng.random((N_USERS, N_ITEMS)) < 0.6
    on_list[:, 0] = True  # nobody is without a list
    users, items = np.nonzero(on_list)
    lists = HistoryIndex.from_pairs(users, items, N_USERS)
    found = ranks_of_lists(lists, scores[on_list], rows, mask, N_ITEMS)
    for row, (user, target) in enumerate(zip(rows.users, rows.items, strict=True)):
        of_model = np.append(-np.inf, np.where(on_list[user], scores[user], -1.0))  # the pad, and the items
        had = set(rows.histories.rows(np.array([row]))[1].tolist()) if mask != "none" else set()
        for item in had - ({target} if mask == "keep_target" else set()):
            of_model[item + 1] = -np.inf
        expected = target_ranks(torch.tensor(of_model).unsqueeze(0), torch.tensor([target + 1]))
        assert found[row] == int(expected)


def test_a_user_without_a_list_is_a_miss():
    rows = TestRows(
        np.array([0, 1]),
        np.array([2, 2]),
        RowHistories(HistoryIndex(np.zeros(3, int), np.zeros(0, int)), np.array([0, 1]), np.zeros(2, int)),
    )
    lists = HistoryIndex.from_pairs(np.array([0]), np.array([2]), 2)
    assert ranks_of_lists(lists, np.ones(1), rows, "all", 3).tolist() == [1, 4]


@pytest.fixture
def a_plan(toy_settings):
    shared = {key: str(value) for key, value in toy_settings.items() if key != "dataset"}
    return plan(parse_models("Pop"), "toy", 1, (), shared, code_version="1")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_file_is_a_row_of_the_tables(toy_settings, a_plan, tmp_path, kind):
    (job,) = a_plan.jobs
    run(config_dict=dict(job.settings) | {"run_folder": str(job.folder)})
    log = pd.read_csv(f"{toy_settings['data_path']}/toy/toy.inter", sep="\t")
    last = log.groupby("user_id:token").tail(1)
    table = pd.DataFrame({"user_id": last["user_id:token"], "item_id": last["item_id:token"], "score": 1.0})[:-3]
    path = tmp_path / f"perfect.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    (file,) = parse_lists([f"{path} as the truth"], ["Pop"])
    record = collect(a_plan, [Outcome(job)], {file.name: list_run(file, a_plan)})
    quality = analysis.quality(record).set_index(["model", "metric"])["mean"]
    assert quality["the truth", "ndcg@5"] == quality["the truth", "mrr@10"] == pytest.approx(37 / 40)
    tables = write_report(tmp_path / "report", [record], "Pop")
    assert set(tables["significance"]["model"]) == {"the truth"} and set(tables["cost"]["model"]) == {"Pop"}
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "3 test users have no list and count as misses" in text and "the truth" in tables["popularity"]["model"].values
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["user,item,score", "u1,i1,2", "u1,i99,1"], r"row 3: the data set has no item 'i99'; mend"),
        (["user,item,score", "who,i1,2", "NA,i1,2"], r"row 2: the data set has no user 'who' \(2 such rows\)"),
        (["user,item,score", "u1,i1,x"], r"row 2: the score 'x' is no finite number"),
        (["user,item,score", "u1,i1,nan"], r"row 2: the score 'nan' is no finite number"),
        (["user,item,score", "u1,i1,2", "u1,i1,3"], r"row 3: 'u1' has the item 'i1' twice"),
        (["user,item", "u1,i1"], r"has the columns user, item; it must have user, item and score"),
        (["user,item,score", "u1,i1,2,3,4", "u1"], r"cannot read .*Expected 3 columns, got 5"),
    ],
)
def test_files_that_are_no_lists(a_plan, tmp_path, lines, message):
    (tmp_path / "lists.csv").write_text("\n".join(lines) + "\n")
    (file,) = parse_lists([str(tmp_path / "lists.csv")], [])
    with pytest.raises(PerPEFTError, match=message):
        list_run(file, a_plan)


def test_names_of_files():
    with pytest.raises(PerPEFTError, match="'Pop' is the name of another row"):
        parse_lists(["here/Pop.csv"], ["Pop"])


@pytest.mark.parametrize(("name", "message"), [("a.xls", "is no .csv, .tsv or .parquet"), ("a.csv", "cannot read")])
def test_files_that_are_not_there(a_plan, tmp_path, name, message):
    (file,) = parse_lists([str(tmp_path / name)], [])
    with pytest.raises(PerPEFTError, match=message):
        list_run(file, a_plan)
