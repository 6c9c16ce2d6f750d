from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training import ranks as module
from recbole_perpeft.training.ranks import pairs_of, ranks_by_products, target_ranks

WIDTHS = [1, 7, 256]  # of pieces: of one item, of a few, of all


def in_pieces(width, users, catalogue, targets, masked):
    """`ranks_by_products` with pieces of a width."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_SCORES_OF_PROCESSOR", 1)
        patched.setattr(module, "_WIDTH", width)
        return ranks_by_products(users, catalogue, targets, masked)


def by_table(users, catalogue, targets, masked):
    """Through the table of all users and items."""
    scores = users @ catalogue.T
    scores[:, 0] = -torch.inf
    if masked is not None:
        scores[masked] = -torch.inf
    return target_ranks(scores, targets)


def drawn(seed, n_users, n_items, n_masked, values):
    """Vectors of few whole numbers have many equal scores, however sums are rounded."""
    rng = np.random.default_rng(seed)
    whole = (rng.integers(-values, values + 1, (n, 3)) for n in (n_users, n_items))
    users, catalogue = (torch.from_numpy(numbers).float() for numbers in whole)
    targets = torch.from_numpy(rng.integers(1, n_items, n_users))
    masked = [torch.from_numpy(rng.integers(low, high, n_masked)) for low, high in ((0, n_users), (1, n_items))]
    return users, catalogue, targets, tuple(masked)


@given(
    st.sampled_from(WIDTHS),
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(2, 70),
    st.integers(0, 60),
    st.sampled_from([1, 9]),
)
def test_ranks_are_those_of_a_table_of_all_scores(width, seed, n_users, n_items, n_masked, values):
    users, catalogue, targets, masked = drawn(seed, n_users, n_items, n_masked, values)
    assert in_pieces(width, users, catalogue, targets, masked).equal(by_table(users, catalogue, targets, masked))
    assert in_pieces(width, users, catalogue, targets, None).equal(by_table(users, catalogue, targets, None))


@pytest.mark.parametrize("n_users", [1, 2, 3, 7, 8, 9, 17, 257])
@pytest.mark.parametrize("n_items", [5, 7, 11, 16, 100, 257, 4097, 5001])
def test_equal_vectors_have_equal_scores_whatever_the_shape_of_a_product(n_users, n_items):
    torch.manual_seed(n_users)
    for n_vectors, size in product((1, 1 + n_items // 7), (50, 64)):
        vectors, of_item = torch.randn(n_vectors, size), torch.randint(0, n_vectors, (n_items,))
        users, targets = torch.randn(n_users, size), torch.randint(1, n_items, (n_users,))
        scores = (users @ vectors.T)[:, of_item]
        scores[:, 0] = -torch.inf
        assert ranks_by_products(users, vectors[of_item], targets, None).equal(target_ranks(scores, targets))


def test_no_users_and_many(monkeypatch):
    none = torch.zeros(0, dtype=torch.long)
    assert ranks_by_products(torch.randn(0, 4), torch.randn(9, 4), none, None).tolist() == []
    monkeypatch.setattr(module, "_MOST_USERS", 16)
    users, catalogue, targets, masked = drawn(3, 50, 60, 200, 9)
    assert ranks_by_products(users, catalogue, targets, masked).equal(by_table(users, catalogue, targets, masked))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_of_vectors_of_other_kinds(width, kind):
    torch.manual_seed(0)
    users, catalogue, targets = torch.randn(30, 8).to(kind), torch.randn(200, 8).to(kind), torch.randint(1, 200, (30,))
    assert in_pieces(width, users, catalogue, targets, None).equal(by_table(users, catalogue, targets, None))


@pytest.mark.parametrize("more", [0, 1, 25])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_score_that_is_no_number_is_worse_than_everything_unless_it_is_the_target(width, more):
    users, catalogue, targets, masked = drawn(1, 6, 50, 20, 9)
    catalogue[7], targets[targets == 7] = torch.nan, 8
    for n in range(20, 20 + more):
        catalogue[n], targets[targets == n] = torch.nan, 8
    expected = by_table(users, catalogue, targets, masked)
    assert in_pieces(width, users, catalogue, targets, masked).equal(expected)
    targets[2] = 7
    rows, items = torch.cat([masked[0], torch.tensor([2])]), torch.cat([masked[1], torch.tensor([7])])
    assert in_pieces(width, users, catalogue, targets, (rows, items))[2] == 50, "no candidate, no score"
    masked = tuple(column[(masked[0] != 2) | (masked[1] != 7)] for column in masked)
    with pytest.raises(PerPEFTError, match="scores 1 of 6 targets as NaN"):
        in_pieces(width, users, catalogue, targets, masked)


@pytest.mark.parametrize("width", WIDTHS)
def test_infinite_scores(width):
    users, catalogue = torch.ones(4, 1), torch.tensor([0, 1, torch.inf, torch.inf, -torch.inf]).unsqueeze(1)
    targets = torch.tensor([1, 2, 3, 4])
    expected = by_table(users, catalogue, targets, None)
    assert in_pieces(width, users, catalogue, targets, None).equal(expected) and expected.tolist() == [3, 1, 1, 5]


def test_pairs_of_some_rows():
    pairs = torch.tensor([0, 0, 2, 5, 2]), torch.tensor([9, 8, 7, 6, 5])
    rows, items = pairs_of(torch.tensor([2, 5]), pairs)
    assert rows.tolist() == [0, 1, 0] and items.tolist() == [7, 6, 5]
    assert pairs_of(torch.tensor([2]), None) is None
