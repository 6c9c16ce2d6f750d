"""Approximate lists hold nearly what exact ones hold, are full, and respect what is left out."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use import approximate
from recbole_perpeft.use.approximate import LEAST_RECALL, Approximation
from recbole_perpeft.use.lists import write_lists
from recbole_perpeft.use.recommend import Wanted
from recbole_perpeft.use.topk import Candidates, best_items
from support.candidates import drawn_candidates

needs_usearch = pytest.mark.skipif(find_spec("usearch") is None, reason="usearch is not installed")


class Scorer:
    def __init__(self, vectors):
        self.vectors = lambda group: vectors
        self.vectors_for = lambda group: group


def exact(of_users, vectors, candidates, seen, k):
    of = candidates.of(vectors)
    return best_items(lambda part: of_users @ of[part].T, candidates, seen, k)


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(approximate, "_FEW_ITEMS", 2)


@needs_usearch
@pytest.mark.parametrize("length", [0.0, 1.0], ids=["one length", "other lengths"])
def test_recall_is_what_is_promised(length):
    torch.manual_seed(0)
    vectors = torch.randn(2001, 16) * torch.exp(length * torch.randn(2001, 1))
    of_users, candidates = torch.randn(300, 16), Candidates(np.arange(1, 2001), 2001)
    seen = (np.repeat(np.arange(300), 20), np.random.default_rng(0).integers(1, 2001, 6000))
    expected, scores = exact(of_users, vectors, candidates, seen, 10)
    approximation = Approximation(Scorer(vectors), "Model")
    found, values = approximation.best(of_users, None, candidates, seen, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert recall >= LEAST_RECALL
    same = found == expected
    np.testing.assert_allclose(values[same], scores[same], rtol=1e-5)
    assert "recall at 10 0.99" in approximation.report() or "recall at 10 1.0" in approximation.report()
    again = Approximation(Scorer(vectors), "Model").best(of_users, None, candidates, seen, 10)
    assert np.array_equal(again[0], found) and np.array_equal(again[1], values)


@needs_usearch
@given(st.integers(0, 10**6), st.integers(3, 60), st.integers(1, 6), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=25)
def test_lists_are_full_and_hold_nothing_that_is_left_out(seed, n_items, n_users, k, share):
    rng = np.random.default_rng(seed)
    candidates = drawn_candidates(rng, n_items)
    k = min(k, len(candidates.ids))
    vectors, of_users = (torch.from_numpy(rng.normal(size=(n, 4)).astype("float32")) for n in (n_items + 1, n_users))
    rows, items = np.nonzero(rng.random((n_users, n_items + 1)) < share)
    barred = candidates.place[items] >= 0
    seen = (rows[barred].repeat(2), items[barred].repeat(2))  # who buys a thing twice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "_FEW_ITEMS", 0)
        found, values = Approximation(Scorer(vectors), "Model").best(of_users, 3, candidates, seen, k)
    for user in range(n_users):
        may = set(candidates.ids) - set(seen[1][seen[0] == user])
        n = min(k, len(may))
        assert set(found[user, :n]) <= may and len(set(found[user, :n])) == n and (found[user, n:] == -1).all()
        assert (np.diff(values[user, :n]) <= 0).all() and (values[user, n:] == -np.inf).all()


@needs_usearch
def test_a_graph_that_does_not_find_is_not_used(many, monkeypatch):
    monkeypatch.setattr(Approximation, "_search", lambda self, users, _: (np.full((len(users), 5), -1),) * 2)
    vectors, of_users, candidates = torch.randn(50, 4), torch.randn(3, 4), Candidates(np.arange(1, 50), 50)
    nothing = (np.empty(0, np.int64),) * 2
    approximation = Approximation(Scorer(vectors), "Model")
    found = approximation.best(of_users, None, candidates, nothing, 5)[0]
    assert np.array_equal(found, exact(of_users, vectors, candidates, nothing, 5)[0])
    assert "1 groups were not found well enough" in approximation.report()


@needs_usearch
def test_the_recommender_of_groups(many, recommender, tmp_path):
    users, item = recommender.all_users(), recommender.item_tokens[1]
    expected = recommender.for_users(users, k=10, exclude=[item])
    approximation = recommender.search_approximately()
    found = recommender.for_users(users, k=10, exclude=[item])
    assert found[["user_id", "rank", "group"]].equals(expected[["user_id", "rank", "group"]])
    assert (found["item_id"] == expected["item_id"]).mean() > 0.95 and item not in set(found["item_id"])
    assert "of 150 users" in approximation.report()
    rows = write_lists(recommender, recommender.people_of_log(users), Wanted(10), tmp_path / "lists.parquet")
    assert rows == 10 * len(users)


def test_without_its_package_and_for_models_without_vectors(toy_run, monkeypatch, capsys):
    words = ["recommend", f"--run={toy_run('BPR')}", "--users=u1", "--ann=usearch"]
    if find_spec("usearch"):
        assert main(words) == 2
        assert "BPR has no item vectors" in capsys.readouterr().err
    monkeypatch.setattr(approximate, "PACKAGES", ("no_package_of_this_name",))
    with pytest.raises(PerPEFTError, match=r"recbole-perpeft\[ann\]"):
        Approximation(Scorer(torch.empty(0)), "Model")
