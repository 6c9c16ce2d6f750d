import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.grouping import (
    kmeans_groups,
    mean_vectors,
    most_likely_groups,
    random_groups,
    warn_if_groups_are_small,
)


def clouds(sizes, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 6)) * 20
    return np.concatenate([c + rng.normal(size=(n, 6)) for c, n in zip(centres, sizes, strict=True)])


def test_kmeans_finds_separate_clouds():
    sizes = [40, 50, 60]
    groups = kmeans_groups(clouds(sizes), 3, min_group_size=1, seed=3)
    truth = np.repeat(np.arange(3), sizes)
    assert len({(a, b) for a, b in zip(groups, truth, strict=True)}) == 3


def test_tiny_groups_are_dissolved_without_gaps_in_the_numbers():
    groups = kmeans_groups(clouds([50, 3, 60, 2]), 4, min_group_size=10, seed=0)
    sizes = np.bincount(groups)
    assert len(sizes) == 2
    assert sizes.min() >= 10
    assert sizes.sum() == 115


def test_groups_of_equal_users_are_not_empty():
    groups = kmeans_groups(np.ones((30, 4)), 3, min_group_size=5, seed=0)
    assert np.bincount(groups).min() >= 5


@pytest.mark.parametrize("make", [kmeans_groups, lambda v, *rest: random_groups(len(v), *rest)])
def test_too_many_groups(make):
    vectors = clouds([10])
    with pytest.raises(PerPEFTError, match="n_groups is 11, but there are only 10 users"):
        make(vectors, 11, 1, 0)
    with pytest.raises(PerPEFTError, match="min_group_size"):
        make(vectors, 5, 3, 0)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_regrouping_respects_the_least_size_and_is_otherwise_the_best(n_groups, least, extra, seed):
    rng = np.random.default_rng(seed)
    n_users = n_groups * least + extra
    log_likelihood = rng.normal(size=(n_users, n_groups))
    current = rng.integers(0, n_groups, n_users)
    groups = most_likely_groups(log_likelihood, current, least)
    sizes = np.bincount(groups, minlength=n_groups)
    assert sizes.min() >= least
    best = log_likelihood.argmax(1)
    too_small = np.flatnonzero(np.bincount(best, minlength=n_groups) < least)
    moved = groups != best
    assert set(groups[moved]) <= set(too_small)
    assert moved.sum() <= least * len(too_small)


def test_ties_stay():
    current = np.array([1, 0, 1, 0])
    assert (most_likely_groups(np.zeros((4, 2)), current, 1) == current).all()


def test_mean_vectors_equal_a_loop():
    torch.manual_seed(0)
    vectors, groups = torch.randn(20, 3), torch.arange(20) % 4
    expected = torch.stack([vectors[groups == g].mean(0) for g in range(4)])
    torch.testing.assert_close(mean_vectors(vectors, groups, 4), expected)


def test_small_groups_are_warned_about(caplog):
    caplog.set_level(logging.INFO)
    groups = np.repeat([0, 1], [90, 10])
    warn_if_groups_are_small(groups, np.full(100, 5), n_items=100)
    assert "2 of 90, 10 users" in caplog.text
    assert "1 of 2 groups have fewer training interactions (50 in the smallest)" in caplog.text
    caplog.clear()
    warn_if_groups_are_small(groups, np.full(100, 10), n_items=100)
    assert "may do worse" not in caplog.text
