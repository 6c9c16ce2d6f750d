"""Figures of lists against naive loops over users, lists and pairs."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.training.list_figures import ListFigures

CUTS = (2, 4)


class Case:
    """Random scores, with items that are no candidates, in batches."""

    def __init__(self, seed, n_items=13, n_users=9, n_batches=3, barred=0.5):
        rng = np.random.default_rng(seed)
        self.counts = rng.integers(0, 6, n_items)
        self.counts[0] = 0
        self.groups = torch.from_numpy(rng.integers(-1, 3, n_users))
        vectors = rng.normal(size=(n_items, 5))
        self.vectors = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        self.batches = []
        for _ in range(n_batches):
            n_rows = int(rng.integers(1, 6))
            scores = torch.from_numpy(rng.permutation(n_rows * n_items).reshape(n_rows, n_items).astype(np.float32))
            scores[torch.from_numpy(rng.random((n_rows, n_items)) < barred)] = -torch.inf
            scores[:, 0] = -torch.inf
            rows = torch.arange(n_rows).repeat_interleave(torch.from_numpy(rng.integers(1, 3, n_rows)))
            targets = torch.from_numpy(rng.integers(1, n_items, len(rows)))
            self.batches.append((scores, torch.from_numpy(rng.integers(0, n_users, n_rows)), rows, targets))

    def figures(self, cuts=CUTS, with_content=True):
        found = ListFigures(cuts, self.counts, self.groups, self.vectors.__getitem__ if with_content else None)
        for batch in self.batches:
            found.add(*batch)
        return found

    def rows(self, cut):
        """User, list, candidates and targets of every row."""
        for scores, users, rows, targets in self.batches:
            for row, user in enumerate(users.tolist()):
                candidates = [item for item, score in enumerate(scores[row].tolist()) if score > -np.inf]
                listed = sorted(candidates, key=lambda item: -float(scores[row, item]))[:cut]
                yield user, listed, candidates, set(targets[rows == row].tolist())

    def naive(self, cut, group=None):
        items = list(range(1, len(self.counts)))
        share = {item: (self.counts[item] + 1) / (self.counts[1:] + 1).sum() for item in items}
        shown, distances, unexpected, hits, n_lists = Counter(), [], 0, 0, 0
        for user, listed, candidates, targets in self.rows(cut):
            if group is not None and int(self.groups[user]) != group:
                continue
            n_lists += 1
            shown.update(listed)
            pairs = [1 - float(self.vectors[one] @ self.vectors[other]) for one, other in combinations(listed, 2)]
            distances += [np.mean(pairs)] if pairs else []
            popular = sorted((self.counts[item] for item in candidates), reverse=True)
            least = popular[cut - 1] if len(popular) >= cut else 0
            surprising = [item for item in listed if self.counts[item] < least]
            unexpected += len(surprising)
            hits += len(set(surprising) & targets)
        places = sum(shown.values())
        if not places:
            return {}
        gini = sum(abs(shown[one] - shown[other]) for one in items for other in items) / (2 * len(items) * places)
        found = {
            "coverage": len(shown) / len(items),
            "gini": gini,
            "popularity": sum(shown[item] * self.counts[item] for item in items) / places,
            "novelty": -sum(shown[item] * np.log2(share[item]) for item in items) / places,
            "unexpectedness": unexpected / places,
            "serendipity": hits / n_lists,
        } | ({"diversity": np.mean(distances)} if distances else {})
        return {f"{name}@{cut}": value for name, value in found.items()}


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), barred=st.sampled_from([0.0, 0.4, 0.8]))
def test_each_figure_is_that_of_a_naive_loop(seed, barred):
    case = Case(seed, barred=barred)
    found = case.figures()
    assert found.overall() == pytest.approx(case.naive(2) | case.naive(4), abs=1e-5)
    groups = found.by_group()
    assert sum(each["lists"] for each in groups) <= sum(len(users) for _, users, *_ in case.batches)
    for each in groups:
        expected = case.naive(2, each["group"]) | case.naive(4, each["group"])
        assert {name: each[name] for name in each if "@" in name} == pytest.approx(expected, abs=1e-5)


def test_popular_items_that_are_no_candidates_make_it_look_further():
    counts = np.array([0, *range(100, 0, -1)])
    scores = torch.full((2, 101), 1.0)
    scores[:, 0] = scores[1, 1:60] = -torch.inf
    scores[0, 3] = scores[1, 61] = scores[1, 90] = 2.0  # the second most popular of the second row, and the 31st
    figures = ListFigures([2], counts)
    figures.add(scores, torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([3, 90]))
    least = figures._least_expected(scores)
    assert least.tolist() == [[99], [40]] and figures.overall()["serendipity@2"] == 1.0


def test_scores_that_are_no_numbers_are_on_no_list():
    scores = torch.tensor([[-torch.inf, torch.nan, 1.0, 2.0]])
    figures = ListFigures([1, 9], np.array([0, 1, 2, 4]))
    figures.add(scores, torch.tensor([1]), torch.tensor([0]), torch.tensor([3]))
    assert figures.overall()["popularity@1"] == 4.0 and figures.overall()["popularity@9"] == 3.0
    assert figures.overall()["coverage@9"] == pytest.approx(2 / 3) and figures.by_group() == []
    assert not [name for name in figures.overall() if name.startswith("diversity")]


def test_what_recommends_the_popular_is_no_surprise_whatever_the_order_of_ties():
    counts = np.array([0, 3, 3, 3, 1, 1])
    scores = torch.from_numpy(counts).float().repeat(4, 1) + torch.rand(4, 6) / 10
    scores[:, 0] = -torch.inf
    figures = ListFigures([2], counts)
    figures.add(scores, torch.arange(4), torch.arange(4), torch.tensor([1, 2, 3, 4]))
    assert figures.overall()["unexpectedness@2"] == figures.overall()["serendipity@2"] == 0.0
