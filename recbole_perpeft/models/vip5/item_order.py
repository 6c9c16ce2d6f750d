"""Orders of items, from which their names are made.

Names of items are part of what the model reads and predicts. The order of the authors' numbers, by first appearance
in the users' sequences, held-out items included, tells which item comes next: see docs/vip5.md.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from recbole_perpeft.data.dataset import HistoryIndex

_FACTORS = 32  # of the item vectors of the order `collab`
_POWER_ITERATIONS = 20


def random_ranks(tokens: Sequence[str], seed: int | Sequence[int]) -> np.ndarray:
    """A random rank for every name, int64 [n], which depends on names and seed alone, not on their order."""
    ranks = np.empty(len(tokens), dtype=np.int64)
    by_name = np.argsort(np.asarray(tokens, dtype=str), kind="stable")
    ranks[by_name] = np.random.default_rng(seed).permutation(len(tokens))
    return ranks


def similarity_ranks(vectors: np.ndarray, group_size: int, tie_break: np.ndarray) -> np.ndarray:
    """Ranks by which similar items come together: the set is halved again and again along its principal direction.

    Halves are multiples of `group_size`, so that groups of so many items, which share the first token of their names,
    are alike.

    Args:
        vectors: float [n, d].
        group_size: Items that share a first token.
        tie_break: int64 [n], a permutation; orders equal items.

    Returns:
        int64 [n]
    """
    order = np.argsort(tie_break)
    parts, done = [order], []
    while parts:
        rows = parts.pop()
        rows = rows[np.argsort(_projection(vectors[rows]), kind="stable")]
        n_groups = -(-len(rows) // group_size)
        if n_groups <= 1:
            done.append(rows)
            continue
        border = (n_groups // 2) * group_size
        parts += [rows[border:], rows[:border]]
    ranks = np.empty(len(vectors), dtype=np.int64)
    ranks[np.concatenate(done)] = np.arange(len(vectors))
    return ranks


def _projection(vectors: np.ndarray) -> np.ndarray:
    """Coordinates on the first principal direction, by power iteration; its sign is that of the largest entry."""
    centred = vectors - vectors.mean(axis=0)
    if not centred.any():
        return np.zeros(len(vectors))
    direction = centred[np.argmax((centred**2).sum(axis=1))]
    for _ in range(_POWER_ITERATIONS):
        direction = centred.T @ (centred @ direction)
        direction /= np.linalg.norm(direction)
    return centred @ (direction * np.sign(direction[np.argmax(np.abs(direction))]))


def collaborative_vectors(history: HistoryIndex, n_items: int, seed: int) -> np.ndarray:
    """Vectors of items from who bought them, [n_items, at most 32]: singular vectors of the train interactions.

    Args:
        history: Train items of every user.
        n_items: Number of item ids, the pad included.
        seed: Of the start of the iteration.
    """
    users, items = history.pairs()
    bought = sparse.csr_matrix((np.ones(len(items)), (items, users)), shape=(n_items, history.n_users))
    bought.data[:] = 1.0
    scale = 1 / np.sqrt(np.maximum(bought.sum(axis=0).A1, 1.0))  # users of many items say less about each
    n_factors = min(_FACTORS, min(bought.shape) - 1)
    start = np.random.default_rng(seed).standard_normal(min(bought.shape))
    left, values, _ = svds(bought @ sparse.diags(scale), k=n_factors, v0=start)
    vectors = left * values
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def appearance_ranks(items: np.ndarray, n_items: int) -> np.ndarray:
    """Ranks by first appearance in a log that is sorted by user and time, int64 [n_items]; the pad has none (-1).

    Args:
        items: Items of all interactions, user by user, held-out interactions included. That is the leak.
        n_items: Number of item ids, the pad included.
    """
    found, first = np.unique(items, return_index=True)
    ranks = np.full(n_items, -1, dtype=np.int64)
    ranks[found] = np.argsort(np.argsort(first))
    missing = np.flatnonzero(ranks[1:] < 0) + 1
    ranks[missing] = len(found) + np.arange(len(missing))
    return ranks


def successor_share(ranks: np.ndarray, history: HistoryIndex, users: np.ndarray, targets: np.ndarray) -> float:
    """Share of held-out items whose rank follows the largest rank in the history: near 1 / n unless ranks leak.

    Args:
        ranks: int64 [n_items], by item id; the pad's is not read.
        history: Items of every user before the held-out ones.
        users: User of every held-out item, int64 [n].
        targets: Held-out items, int64 [n].
    """
    largest = np.full(history.n_users, -2, dtype=np.int64)
    known = history.lengths > 0
    largest[known] = np.maximum.reduceat(ranks[history.items], history.indptr[:-1][known])
    return float((ranks[targets] == largest[users] + 1).mean())
