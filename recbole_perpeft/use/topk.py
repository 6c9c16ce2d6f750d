"""The best items of users, found in chunks of the catalogue: never a table of all users by all items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError

ITEMS_AT_ONCE = 16_384
Score = Callable[[slice], Tensor]  # of some candidates, for all users of a batch: [B, size of the slice]


@dataclass(frozen=True)
class Candidates:
    """Items that may be recommended.

    Attributes:
        ids: int64 [C], ascending, without the pad.
        n_items: items there are, the pad included.
    """

    ids: np.ndarray
    n_items: int

    @cached_property
    def place(self) -> np.ndarray:
        """Place of every item among `ids`, int64 [n_items]; -1 for others."""
        place = np.full(self.n_items, -1)
        place[self.ids] = np.arange(len(self.ids))
        return place

    @cached_property
    def tensor(self) -> Tensor:
        """`ids`."""
        return torch.from_numpy(self.ids)

    def of(self, vectors: Tensor) -> Tensor:
        """Their rows of vectors of all items, [C, d]; no copy where they follow one another."""
        first, last = int(self.ids[0]), int(self.ids[-1])
        follow = last - first + 1 == len(self.ids)
        return vectors[first : last + 1] if follow else vectors[self.tensor.to(vectors.device)]


@torch.no_grad()
def best_items(
    score: Score,
    candidates: Candidates,
    seen: tuple[np.ndarray, np.ndarray],
    k: int,
    items_at_once: int = ITEMS_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of each user of a batch.

    Args:
        score: Gives the scores of a slice of the candidates.
        candidates: Who competes.
        seen: Row and item id of pairs that are no candidates, each int64 [n].
        k: Length of a list.
        items_at_once: Candidates of a slice.

    Returns:
        Item ids int64 [B, k] and scores float32 [B, k], best first; -1 and -inf where there are no more items.

    Raises:
        PerPEFTError: A score is no number.
    """
    n, best = len(candidates.ids), []
    places = candidates.place[seen[1]]
    order = np.argsort(places, kind="stable")
    rows, columns = torch.from_numpy(seen[0][order]), torch.from_numpy(places[order])
    borders = np.searchsorted(places[order], np.arange(0, n + items_at_once, items_at_once))
    top_scores, top_places = torch.empty(0), torch.empty(0)
    for number, start in enumerate(range(0, n, items_at_once)):
        scores = score(slice(start, min(n, start + items_at_once)))
        barred = slice(borders[number], borders[number + 1])
        scores[rows[barred], columns[barred] - start] = -torch.inf
        best = list(scores.topk(min(k, scores.shape[1]), dim=1))
        best[1] += start
        if start:  # what was best so far competes with the best of this slice
            both = torch.cat([top_scores, best[0]], dim=1).topk(min(k, top_scores.shape[1] + best[0].shape[1]), dim=1)
            best = [both.values, torch.cat([top_places, best[1]], dim=1).gather(1, both.indices)]
        top_scores, top_places = best
    if top_scores.isnan().any():
        raise PerPEFTError("the model gives scores that are no numbers; train it anew with a lower learning_rate")
    found = top_scores.cpu().float().numpy()
    items = np.where(found > -np.inf, candidates.ids[top_places.cpu().numpy()], -1)
    if missing := k - items.shape[1]:
        items = np.pad(items, ((0, 0), (0, missing)), constant_values=-1)
        found = np.pad(found, ((0, 0), (0, missing)), constant_values=-np.inf)
    return items, found
