"""Orders and names of items, and the tree of names."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.models.vip5.names import (
    appearance_ranks,
    code_base,
    collaborative_vectors,
    content_vectors,
    mean_vectors,
    random_ranks,
    similarity_ranks,
    successor_share,
    token_names,
)
from recbole_perpeft.models.vip5.t5 import word_tokenizer
from recbole_perpeft.models.vip5.trie import ItemTrie

TOKENIZER = word_tokenizer(["no words"])


@settings(max_examples=30)
@given(n=st.integers(1, 60), scheme=st.sampled_from(["code", "atomic", "digits"]), seed=st.integers(0, 99))
def test_names_are_different_and_none_begins_another(n, scheme, seed):
    ranks = np.random.default_rng(seed).permutation(n)
    names = token_names(scheme, ranks, TOKENIZER)
    rows = [tuple(token for token in row if token >= 0) for row in names.names.tolist()]
    assert len(set(rows)) == n
    assert not any(one != other and other[: len(one)] == one for one in rows for other in rows)
    assert names.names.max() < names.n_tokens
    if scheme == "code":
        base = code_base(n)
        assert (base - 1) ** 2 < n <= base**2 and names.n_tokens == 2 * base
        assert all(first < base <= second for first, second in rows)
    if scheme == "digits":
        words = [TOKENIZER.decode(names.words[list(row[:-1])]) for row in rows]
        assert words == [str(rank + 1) for rank in ranks]


@settings(max_examples=30)
@given(n=st.integers(1, 50), scheme=st.sampled_from(["code", "atomic", "digits"]), chunk=st.integers(1, 20))
def test_the_tree_holds_every_name(n, scheme, chunk):
    names = token_names(scheme, np.random.default_rng(n).permutation(n), TOKENIZER)
    trie = ItemTrie(names.names, names.n_tokens, chunk)
    rows = [tuple(token for token in row if token >= 0) for row in names.names.tolist()]
    prefixes = {row[:length] for row in rows for length in range(len(row))}
    assert trie.n_nodes == len(prefixes)
    nodes, tokens, exists = trie.paths(torch.arange(1, n + 1))
    for item, row in enumerate(rows):
        assert tokens[item][exists[item]].tolist() == list(row)
        for place in range(len(row)):
            node, path = int(nodes[item, place]), []
            allowed = {other[place] for other in rows if other[:place] == row[:place] and len(other) > place}
            assert set(trie.allowed(nodes[item, place]).nonzero().squeeze(1).tolist()) == allowed
            assert int(trie.node_depth[node]) == place
            while node:
                path.insert(0, int(trie.node_token[node]))
                node = int(trie.node_parent[node])
            assert tuple(path) == row[:place]
        last = trie.item_edges[item + 1][exists[item]][-1]
        assert trie.edge_item[last] == item + 1 and trie.edge_child[last] == -1
    scored = torch.cat([part.nodes[part.scored] for part in trie.chunks])
    assert scored.tolist() == list(range(trie.n_nodes))
    for part in trie.chunks:
        for place, node in enumerate(part.nodes.tolist()):
            chain = {node}
            while node:
                node = int(trie.node_parent[node])
                chain.add(node)
            assert set(part.nodes[part.ancestors[place]].tolist()) == chain


def leak_hit_rate(order_name, n_users=400, n_items=300, length=8):
    """How often the held-out item of a user has the number after the largest one in his history."""
    rng = np.random.default_rng(3)
    sequences = np.stack([rng.permutation(n_items)[:length] for _ in range(n_users)]) + 1
    users = np.arange(1, n_users + 1)
    history = HistoryIndex.from_pairs(np.repeat(users, length - 1), sequences[:, :-1].ravel(), n_users + 1)
    tokens = [f"item{number}" for number in range(n_items)]
    by_order = {
        "random": random_ranks(tokens, seed=0),
        "collab": similarity_ranks(
            collaborative_vectors(history, n_items + 1, seed=0)[1:], code_base(n_items), random_ranks(tokens, seed=0)
        ),
        "appearance": appearance_ranks(sequences.ravel(), n_items + 1)[1:],
    }
    return successor_share(np.concatenate([[-1], by_order[order_name]]), history, users, sequences[:, -1])


def test_numbers_tell_the_held_out_item_only_by_appearance():
    for order_name in ("random", "collab"):
        assert leak_hit_rate(order_name) < 0.02  # chance: 1 / 300
    assert leak_hit_rate("appearance") > 0.08  # about a tenth of the items appear here for the first time


def test_successors_are_counted_by_user():
    history = HistoryIndex.from_pairs(np.array([1, 1, 3]), np.array([2, 1, 4]), 5)  # users 2 and 4 have no history
    ranks = np.array([-1, 3, 0, 2, 1])
    users, targets = np.array([1, 3, 3, 2]), np.array([3, 3, 1, 2])
    assert successor_share(ranks, history, users, targets) == 0.25  # 1 + 1 = 2 of user 3, item 3


def test_random_order_depends_on_names_alone():
    tokens = np.array([f"t{number}" for number in range(50)])
    shuffle = np.random.default_rng(1).permutation(50)
    assert np.array_equal(random_ranks(tokens, 4)[shuffle], random_ranks(tokens[shuffle], 4))
    assert not np.array_equal(random_ranks(tokens, 4), random_ranks(tokens, 5))
    assert sorted(random_ranks(tokens, 4)) == list(range(50))


def test_similar_items_share_their_first_token():
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(np.arange(8), 8))  # 8 kinds of 8 items
    vectors = rng.standard_normal((8, 5))[kind] * 9 + 0.01 * rng.standard_normal((64, 5))
    ranks = similarity_ranks(vectors, 8, rng.permutation(64))
    assert sorted(ranks) == list(range(64))
    first = ranks // 8
    assert all(len(set(first[kind == one])) == 1 for one in range(8))
    equal = similarity_ranks(np.ones((10, 3)), 4, np.arange(10))
    assert sorted(equal) == list(range(10))


def test_items_of_the_same_users_are_neighbours():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 61), 6)
    kind = np.concatenate([[-1], rng.permutation(np.repeat([0, 1], 12))])
    of_kind = [np.flatnonzero(kind == one) for one in (0, 1)]
    items = np.concatenate([rng.permutation(of_kind[user % 2])[:6] for user in range(1, 61)])
    history = HistoryIndex.from_pairs(users, items, 61)
    vectors = collaborative_vectors(history, 25, seed=0)
    ranks = similarity_ranks(vectors[1:], 12, np.arange(24))
    assert len(set(ranks[kind[1:] == 0] // 12)) == 1


def test_items_that_never_appear_get_the_last_numbers():
    assert appearance_ranks(np.array([3, 1, 3]), 5).tolist() == [-1, 1, 2, 0, 3]


def test_similar_items_start_with_similar_vectors():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, 3)) * [5.0, 1.0, 0.2] + 4.0
    vectors = content_vectors(features, 8, seed=0)
    assert vectors.shape == (200, 8)
    assert np.allclose(vectors[:, :3].T @ vectors[:, :3] / 200, np.eye(3), atol=1e-9)  # whitened components
    centred = features - features.mean(axis=0)
    back = vectors[:, :3] @ np.linalg.lstsq(vectors[:, :3], centred, rcond=None)[0]
    assert np.allclose(back, centred, atol=1e-9)
    assert 0.7 < vectors[:, 3:].std() < 1.3
    assert content_vectors(features, 2, seed=0).shape == (200, 2)


def test_users_start_as_the_mean_of_their_train_items():
    vectors = np.random.default_rng(0).standard_normal((6, 4))
    history = HistoryIndex.from_pairs(np.array([1, 1, 1, 3]), np.array([2, 5, 5, 6]), 4)
    means = mean_vectors(vectors, history, seed=0)
    assert means.shape == (4, 4)
    wanted = np.stack([(vectors[1] + 2 * vectors[4]) / 3, vectors[5]])
    assert np.allclose(means[[1, 3]], wanted / np.sqrt(np.mean(wanted**2)))
    assert 0.2 < np.abs(means[[0, 2]]).mean() < 2  # these are random


@pytest.mark.parametrize(("n", "base"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (12_000, 110)])
def test_the_base_of_codes_is_the_smallest_that_suffices(n, base):
    assert code_base(n) == base
