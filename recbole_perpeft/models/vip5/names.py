"""Names of items and users: how a rank becomes a sequence of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from transformers import PreTrainedTokenizerBase

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.models.vip5.item_order import (
    appearance_ranks,
    collaborative_vectors,
    random_ranks,
    similarity_ranks,
)

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
