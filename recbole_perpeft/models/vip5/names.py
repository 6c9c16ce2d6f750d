"""Names of items and users: how the order of items becomes ranks, and a rank a sequence of tokens.

Names of items are part of what the model reads and predicts. The order of the authors' numbers, by first appearance
in the users' sequences, held-out items included, tells which item comes next: see docs/vip5.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from transformers import PreTrainedTokenizerBase

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.dataset import HistoryIndex, SequenceDataset

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


Scheme = Literal["code", "atomic", "digits"]


@dataclass(frozen=True)
class ItemTokenSettings(Settings):
    """How items and users are named."""

    id_scheme: Scheme = setting(
        "code", "Items are named by code (two tokens from small sets) | atomic (one) | digits (a number in words)."
    )
    id_order: Literal["random", "content", "collab", "appearance"] = setting(
        "random", "Neighbours are random | content (alike images) | collab (same buyers) | appearance (leaks targets)."
    )
    user_scheme: Scheme = setting("code", "Users are named by code | atomic | digits, in random order.")
    id_seed: int = setting(0, "Of random orders.", least=0)
    name_init: Literal["random", "content"] = setting(
        "random", "random | content: atomic names start from images (users: of their train items)."
    )

    def starts_from_images(self, scheme: Scheme) -> bool:
        """Whether names of a scheme start from images, if there are any."""
        return self.name_init == "content" and scheme == "atomic"


@dataclass(frozen=True)
class TokenNames:
    """Names as rows of tokens.

    Args:
        names: int64 [n, L]; -1 after the end of a name.
        n_tokens: M; names use the tokens 0 .. M - 1.
        words: int64 [M], the words of the backbone that the tokens are; None for tokens of their own.
    """

    names: np.ndarray
    n_tokens: int
    words: np.ndarray | None = None


def code_base(n: int) -> int:
    """b, the smallest number with b * b >= n."""
    return isqrt(max(n - 1, 0)) + 1


def token_names(scheme: Scheme, ranks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> TokenNames:
    """Names of things by their ranks.

    Args:
        scheme: `code`, `atomic` or `digits`.
        ranks: int64 [n], a permutation of 0 .. n - 1.
        tokenizer: Spells `digits`, whose names end with the end mark, because 1 begins 12.
    """
    return _SCHEMES[scheme](ranks, tokenizer)


def _codes(ranks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> TokenNames:
    base = code_base(len(ranks))
    return TokenNames(np.stack([ranks // base, base + ranks % base], axis=1), 2 * base)


def _atoms(ranks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> TokenNames:
    return TokenNames(ranks[:, None], len(ranks))


def _digits(ranks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> TokenNames:
    spelled = tokenizer([str(rank + 1) for rank in ranks.tolist()], add_special_tokens=False)["input_ids"]
    spelled = [[*word_ids, tokenizer.eos_token_id] for word_ids in spelled]
    lengths = np.array([len(word_ids) for word_ids in spelled])
    words, tokens = np.unique([word for word_ids in spelled for word in word_ids], return_inverse=True)
    names = np.full((len(ranks), lengths.max()), -1, dtype=np.int64)
    names[np.arange(names.shape[1]) < lengths[:, None]] = tokens
    return TokenNames(names, len(words), words)


def content_vectors(features: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Vectors of items from their features, entries of variance 1 on average over the items.

    The leading principal components, each scaled to variance 1, fill as many of the `width` entries as there are; the
    others are random.

    Args:
        features: float [n, d_v].
        width: Entries of a vector.
        seed: Of the random entries.

    Returns:
        [n, width]
    """
    centred = features - features.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(width, int((values > 1e-6 * max(values[0], 1e-12)).sum()))
    vectors = np.random.default_rng(seed).standard_normal((len(features), width))
    vectors[:, :kept] = left[:, :kept] * np.sqrt(len(features))
    return vectors


def mean_vectors(vectors: np.ndarray, history: HistoryIndex, seed: int) -> np.ndarray:
    """Vectors of users: means of those of their train items, scaled to entries of variance 1 on average.

    Args:
        vectors: Of the items 1 .. n, [n, width].
        history: Train items.
        seed: Of the vectors of users without train items, which are random.

    Returns:
        [n_users, width], the pad included.
    """
    ones = np.ones(len(history.items))
    bought = csr_array((ones, history.items - 1, history.indptr), shape=(history.n_users, len(vectors)))
    means = (bought @ vectors) / np.maximum(history.lengths, 1)[:, None]
    known = history.lengths > 0
    means[known] /= np.sqrt(np.mean(np.square(means[known])))
    means[~known] = np.random.default_rng(seed).standard_normal((int((~known).sum()), means.shape[1]))
    return means


_SCHEMES = MappingProxyType({"code": _codes, "atomic": _atoms, "digits": _digits})


def item_ranks(
    settings: ItemTokenSettings,
    tokens: Sequence[str],
    features: Callable[[], np.ndarray],
    dataset,
) -> np.ndarray:
    """Rank of every item without the pad, int64 [n]: row r belongs to the item id r + 1.

    Args:
        settings: Which order.
        tokens: Item tokens, without the pad.
        features: Gives the feature vectors of the items, [n, d_v]; asked for by the order `content`.
        dataset: Train part of the data set; with `appearance`, of `AppearanceDataset`.
    """
    shuffled = random_ranks(tokens, settings.id_seed)
    n_items = len(tokens) + 1
    if settings.id_order == "random":
        return shuffled
    if settings.id_order == "appearance":
        LOGGER.warning(
            "id_order: appearance numbers items as they appear in the users' sequences, held-out items included: "
            "numbers tell what comes next, and results mean nothing. It exists to show this."
        )
        return appearance_ranks(dataset.items_in_order, n_items)[1:]
    if settings.id_order == "content":
        vectors = features()
    else:
        vectors = collaborative_vectors(dataset.phase_history, n_items, settings.id_seed)[1:]
    return similarity_ranks(np.asarray(vectors, dtype=np.float64), code_base(len(tokens)), shuffled)


class AppearanceDataset(SequenceDataset):
    """`SequenceDataset` whose parts know the items of all users in order if `id_order` is `appearance`.

    Attributes:
        items_in_order: integers [n_interactions], user by user in time order, held-out items included; None unless the
            order of names needs it.
    """

    items_in_order: np.ndarray | None = None

    def build(self) -> list["SequenceDataset"]:
        """As `SequenceDataset.build`."""
        parts = super().build()
        if self.config["id_order"] == "appearance":
            for part in parts:
                part.items_in_order = self.inter_feat[self.iid_field].numpy()
        return parts
