import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.data.sampler import Candidates, GroupAwareSampler, _Owned

N_ITEMS = 12
# Users 1 to 4 with repeated purchases and an item (11) nobody bought; user 0 is the pad.
PAIRS = [(1, 1), (1, 2), (1, 2), (2, 2), (2, 3), (2, 4), (2, 4), (3, 5), (3, 6), (4, 5)]
PAIRS += [(4, 7), (4, 8), (4, 9), (4, 10)]
GROUPS = np.array([0, 0, 0, 1, 1])


def history_from(pairs, n_users=5):
    users, items = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    return HistoryIndex.from_pairs(users, items, n_users)


def exact_distribution(pairs, user, n_items, user_group=None, alpha=0.0):
    """Probability of every item by a plain loop; alpha 0 is uniform."""
    mine = {item for owner, item in pairs if owner == user}
    weights = np.zeros(n_items)
    for item in set(range(1, n_items)) - mine:
        if user_group is None:
            count = max(1, sum(other == item for _, other in pairs))
        else:
            count = sum(other == item and user_group[owner] == user_group[user] for owner, other in pairs)
        weights[item] = count**alpha if count else 0.0
    if not weights.any():
        return exact_distribution(pairs, user, n_items, None, alpha)
    return weights / weights.sum()


@st.composite
def worlds(draw):
    n_users, n_items = draw(st.integers(2, 7)), draw(st.integers(4, 15))
    pair = st.tuples(st.integers(1, n_users - 1), st.integers(1, n_items - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=40))
    owned = {user: {item for owner, item in pairs if owner == user} for user in range(n_users)}
    pairs = [pair for pair in pairs if len(owned[pair[0]]) < n_items - 1] or [(1, 1)]
    groups = np.array(draw(st.lists(st.integers(0, 3), min_size=n_users, max_size=n_users)))
    return pairs, n_users, n_items, groups


@given(worlds(), st.sampled_from([("uniform", 1.0), ("popularity", 1.0), ("popularity", 0.75)]), st.integers(0, 99))
@settings(max_examples=150)
def test_never_a_positive_a_pad_or_outside_the_pool(world, distribution, seed):
    pairs, n_users, n_items, groups = world
    sampler = GroupAwareSampler(history_from(pairs, n_users), n_items, *distribution, seed=seed)
    users = torch.arange(1, n_users).repeat(20)
    for user_group in (None, groups):
        sampler.set_groups(user_group)
        negatives = sampler.sample(users, 5)
        assert negatives.shape == (len(users), 5) and negatives.dtype == torch.int64
        for user, drawn in zip(users.tolist(), negatives.tolist(), strict=True):
            allowed = np.flatnonzero(exact_distribution(pairs, user, n_items, user_group))
            assert set(drawn) <= set(allowed.tolist())


def test_large_exponents_leave_numbers():
    sampler = GroupAwareSampler(history_from(PAIRS * 30), N_ITEMS, "popularity", 900.0)
    assert len(sampler.sample(torch.tensor([1]), 50).unique()) >= 1


@pytest.mark.parametrize("user_group", [None, GROUPS], ids=["catalogue", "groups"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
def test_marginals_are_exact(alpha, user_group):
    distribution = "popularity" if alpha else "uniform"
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS, distribution, alpha, seed=3)
    sampler.set_groups(user_group)
    n_draws = 40_000
    for user in range(1, 5):
        drawn = np.bincount(sampler.sample(torch.tensor([user]), n_draws).flatten(), minlength=N_ITEMS)
        expected = exact_distribution(PAIRS, user, N_ITEMS, user_group, alpha)
        possible = expected > 0
        assert drawn[~possible].sum() == 0
        if possible.sum() > 1:
            assert chisquare(drawn[possible], expected[possible] * n_draws).pvalue > 1e-4


def test_positions_and_users_of_a_batch_are_independent():
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS, seed=0)
    first, second = sampler.sample(torch.full((30_000,), 1), 2).T
    joint = np.zeros((N_ITEMS, N_ITEMS))
    np.add.at(joint, (first.numpy(), second.numpy()), 1)
    assert chisquare(joint[3:, 3:].flatten()).pvalue > 1e-4


def test_user_who_owns_the_pool_draws_from_the_catalogue():
    pairs = [(1, 1), (1, 2), (1, 3), (2, 2), (3, 5)]
    sampler = GroupAwareSampler(history_from(pairs), N_ITEMS, seed=1)
    sampler.set_groups(np.array([0, 0, 0, 1, 1]))
    negatives = sampler.sample(torch.tensor([1, 2]), 2_000)
    assert set(negatives[0].tolist()) == set(range(4, N_ITEMS))
    assert set(negatives[1].tolist()) == {1, 3}


def test_ratio_is_the_share_of_the_group():
    n_items = 2_000
    pairs = [(1, 1), (2, 2), (2, 3), (3, 4)]
    sampler = GroupAwareSampler(history_from(pairs), n_items, seed=5)
    for ratio in (0.0, 0.3, 1.0):
        sampler.set_groups(np.array([0, 0, 0, 1, 1]), group_negative_ratio=ratio)
        negatives = sampler.sample(torch.full((200,), 1), 200)
        share = ((negatives == 2) | (negatives == 3)).double().mean()
        expected = ratio + (1 - ratio) * 2 / (n_items - 2)
        assert abs(share - expected) < 4 * np.sqrt(0.25 / 40_000)


def test_reproducible_and_continued_from_a_state(tmp_path):
    def fresh(seed):
        sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS, "popularity", seed=seed)
        sampler.set_groups(torch.from_numpy(GROUPS), 0.5)
        return sampler

    users = torch.tensor([1, 2, 3, 4])
    first, second, other = fresh(1), fresh(1), fresh(2)
    assert torch.equal(first.sample(users, 50), second.sample(users, 50))
    assert not torch.equal(first.sample(users, 50), other.sample(users, 50))
    torch.save(first.get_state(), tmp_path / "state.pt")
    expected = first.sample(users, 50)
    other.set_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.sample(users, 50), expected)


def test_regrouping_moves_the_pools():
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS, seed=0)
    sampler.set_groups(GROUPS)
    assert set(sampler.sample(torch.tensor([1]), 500).flatten().tolist()) == {3, 4}
    sampler.set_groups(np.array([0, 0, 1, 0, 1]))
    assert set(sampler.sample(torch.tensor([1]), 500).flatten().tolist()) == {5, 6}
    sampler.set_groups(None)
    assert set(sampler.sample(torch.tensor([1]), 500).flatten().tolist()) == set(range(3, N_ITEMS))


def test_wide_catalogue_keeps_rare_items_reachable():
    """Weights of a heavy tail become integers: the rarest item must not vanish, the most popular never be exceeded."""
    pairs = [(1, 1)] * 10_000 + [(1, 2)] + [(2, 3)]
    sampler = GroupAwareSampler(history_from(pairs), 5, "popularity", alpha=2.0, seed=0)
    drawn = np.bincount(sampler.sample(torch.tensor([1]), 1_000).flatten(), minlength=5)
    assert drawn[3] > 0 and drawn[4] > 0 and drawn[:3].sum() == 0


def test_user_with_the_whole_catalogue_is_named():
    pairs = [(3, item) for item in range(1, 5)]
    with pytest.raises(PerPEFTError, match="Maria"):
        GroupAwareSampler(history_from(pairs), 5, user_tokens=["[PAD]", "a", "b", "Maria", "c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"distribution": "zipf"}, "uniform, popularity"), ({"alpha": -1.0}, "negative_alpha")],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(PerPEFTError, match=message):
        GroupAwareSampler(history_from(PAIRS), N_ITEMS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GROUPS[:3],), "shape"),
        ((np.array([0, 0, -1, 0, 0]),), "user id 2"),
        ((GROUPS, 1.5), "group_negative_ratio"),
    ],
)
def test_wrong_groups(arguments, message):
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS)
    with pytest.raises(PerPEFTError, match=message):
        sampler.set_groups(*arguments)


def exact_expectation(pool_counts, n, alpha):
    """How often each item is drawn, by a plain loop."""
    weights = np.array(pool_counts, dtype=float) ** alpha * (np.array(pool_counts) > 0)
    return min(n, int((weights > 0).sum())) * weights / weights.sum()


@pytest.mark.parametrize("ratio", [None, 1.0, 0.5, 0.0])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
def test_candidates_of_a_batch_are_drawn_as_often_as_their_weights_say(alpha, ratio):
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS, "popularity" if alpha else "uniform", alpha, seed=1)
    sampler.set_groups(None if ratio is None else GROUPS, 1.0 if ratio is None else ratio)
    n, users = 4, torch.tensor([3, 4, 3])
    catalogue = [0] + [max(1, sum(item == other for _, other in PAIRS)) for item in range(1, N_ITEMS)]
    pool = [sum(item == other and GROUPS[user] == 1 for user, other in PAIRS) for item in range(N_ITEMS)]
    from_pool = 0 if ratio is None else round(n * ratio)
    expected = exact_expectation(pool, from_pool, alpha) + exact_expectation(catalogue, n - from_pool, alpha)
    total, weights, n_draws = np.zeros(N_ITEMS), np.zeros(N_ITEMS), 600
    for _ in range(n_draws):
        drawn = sampler.candidates(users, n)
        items = drawn.items.numpy()
        assert (np.diff(items) > 0).all() and expected[items].all()
        # A weight is times drawn over times expected, so that the weights of an item are 1 on average.
        weight = drawn.log_weight.exp().numpy()
        times = weight * expected[items]
        np.testing.assert_allclose(times, times.round(), atol=1e-4)
        assert times.sum() == pytest.approx(expected.sum(), abs=1e-3)
        total[items] += times
        weights[items] += weight
    np.testing.assert_allclose(total / n_draws, expected, atol=0.1)
    np.testing.assert_allclose((weights / n_draws)[expected > 0], 1.0, atol=0.3)


@given(worlds(), st.integers(1, 20), st.sampled_from(["uniform", "popularity"]), st.integers(0, 99))
@settings(max_examples=60)
def test_candidates_know_whose_they_are(world, n, distribution, seed):
    pairs, n_users, n_items, groups = world
    sampler = GroupAwareSampler(history_from(pairs, n_users), n_items, distribution, seed=seed)
    sampler.set_groups(groups)
    users = torch.tensor([user for user, _ in pairs])
    users = users[torch.from_numpy(groups)[users] == groups[int(users[0])]]
    drawn = sampler.candidates(users, n)
    pool = {item for user, item in pairs if groups[user] == groups[int(users[0])]}
    assert set(drawn.items.tolist()) <= pool and len(drawn.items) <= n
    assert distribution == "popularity" or n < len(pool) or set(drawn.items.tolist()) == pool
    for user, mine in zip(users.tolist(), drawn.owned, strict=True):
        assert mine.tolist() == [(user, item) in pairs for item in drawn.items.tolist()]
    fields = drawn.as_fields()
    assert {tensor.shape for tensor in fields.values()} == {drawn.owned.shape}
    again = Candidates.from_fields(fields)
    assert all(torch.equal(getattr(again, name), getattr(drawn, name)) for name in ("items", "log_weight", "owned"))


def test_all_items_are_drawn_once_with_weight_one():
    sampler = GroupAwareSampler(history_from(PAIRS), N_ITEMS)
    drawn = sampler.candidates(torch.tensor([1, 2]), 50)
    assert drawn.items.tolist() == list(range(1, N_ITEMS)) and not drawn.log_weight.any()


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=30), kind=st.sampled_from(["<i4", "<i8"])
)
@settings(max_examples=30)
def test_owned_pairs_are_there_once_in_order(pairs, kind):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    owned = _Owned.of(HistoryIndex.from_pairs(users, items.astype(kind), 5), 10)
    keys, counts = np.unique(users * 10 + items, return_counts=True)
    assert owned.items.tolist() == (keys % 10).tolist() and owned.counts.tolist() == counts.tolist()
    assert np.diff(owned.indptr).tolist() == np.bincount(keys // 10, minlength=5).tolist()
