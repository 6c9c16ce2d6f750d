import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.grouping import (
    drawn_likelihood,
    kmeans_groups,
    likelihood_candidates,
    mean_vectors,
    most_likely_groups,
    random_groups,
    sequence_log_likelihood,
    warn_if_groups_are_small,
)
from recbole_perpeft.models.perpeft.model import GroupSettings


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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_noise_draws_from_the_posterior(temperature):
    log_likelihood = np.array([-1.0, -2.5, -1.3, -9.0])
    drawn = drawn_likelihood(np.tile(log_likelihood, (40_000, 1)), temperature, (2026, 3)).argmax(1)
    weights = np.array([math.exp(value / temperature) for value in log_likelihood])
    assert np.bincount(drawn, minlength=4) / 40_000 == pytest.approx(weights / weights.sum(), abs=0.01)


def test_without_temperature_nothing_is_drawn():
    log_likelihood = np.random.default_rng(0).normal(size=(20, 3))
    assert (drawn_likelihood(log_likelihood, 0.0, (2026, 3)) == log_likelihood).all()


def test_temperature_falls_to_zero_and_stays():
    settings = GroupSettings(regroup_every=1, regroup_temperature=2.0, regroup_annealing=4)
    assert [settings.temperature(epochs) for epochs in range(6)] == [2, 1.5, 1, 0.5, 0, 0]


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


class Scores:
    """A model whose users are what they bought last, and rows of two slots."""

    ITEM_SEQ, ITEM_SEQ_LEN, POS_ITEM_SEQ, max_seq_length = "item_id_list", "item_length", "pos_item_id_list", 2

    def __init__(self, n_items, seed):
        self.vectors = 0.6 * torch.randn(n_items, 4, generator=torch.Generator().manual_seed(seed))
        self.user_encoder = lambda vectors, item_seq: vectors

    def catalogue(self, group):
        return self.vectors * (group + 1)


def rows_of(n_items, n, seed):
    rng = np.random.default_rng(seed)
    columns = {"item_id_list": rng.integers(1, n_items, (n, 2)), "pos_item_id_list": rng.integers(1, n_items, (n, 2))}
    columns["item_length"] = rng.integers(1, 3, n)
    for row in np.flatnonzero(columns["item_length"] == 1):
        columns["item_id_list"][row, 1] = columns["pos_item_id_list"][row, 1] = 0
    return Interaction({name: torch.from_numpy(column) for name, column in columns.items()})


@settings(max_examples=30)
@given(st.integers(3, 40), st.integers(0, 2), st.integers(0, 99))
def test_a_draw_of_all_items_gives_the_likelihood_of_the_whole_catalogue(n_items, group, seed):
    model, rows = Scores(n_items, seed), rows_of(n_items, 9, seed)
    whole = sequence_log_likelihood(model, rows, group)
    drawn = sequence_log_likelihood(model, rows, group, candidates=torch.arange(1, n_items))
    torch.testing.assert_close(drawn, whole)


def test_likelihoods_of_draws_are_right_but_for_a_bias_that_falls_with_their_number():
    model, rows = Scores(2001, 0), rows_of(2001, 40, 0)
    whole = sequence_log_likelihood(model, rows, 0)
    mean_error, spread = {}, {}
    for n in (50, 400):
        draws = [likelihood_candidates(2001, n, seed) for seed in range(60)]
        error = torch.stack([sequence_log_likelihood(model, rows, 0, candidates=drawn) - whole for drawn in draws])
        mean_error[n], spread[n] = error.mean().item(), error.std(0).mean().item()
    assert mean_error[50] > 2 * mean_error[400] > -0.02  # too likely, on average
    assert mean_error[400] < 0.05 and 2 < spread[50] / spread[400] < 4  # the root of 8 is 2.8


@given(st.integers(2, 60), st.integers(0, 70), st.integers(0, 9))
def test_drawn_candidates_are_different_items_and_never_the_pad(n_items, n, seed):
    drawn = likelihood_candidates(n_items, n, (seed, 3))
    if n == 0 or n >= n_items - 1:
        assert drawn is None
        return
    assert drawn.equal(likelihood_candidates(n_items, n, (seed, 3))) and drawn.equal(drawn.unique())
    assert len(drawn) == n and drawn[0] >= 1 and drawn[-1] < n_items


def test_a_single_candidate_that_is_the_target_is_no_other_item():
    model, rows = (
        Scores(5, 0),
        Interaction(
            {
                "item_id_list": torch.tensor([[1, 0]]),
                "pos_item_id_list": torch.tensor([[2, 0]]),
                "item_length": torch.tensor([1]),
            }
        ),
    )
    assert sequence_log_likelihood(model, rows, 0, candidates=torch.tensor([2])).isfinite().all()
