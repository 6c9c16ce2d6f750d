"""Lists by approximate search (usearch's graphs) over the catalogue of each group, held against exact ones."""

from __future__ import annotations

from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.use.topk import Candidates, best_items

PACKAGES = ("usearch",)
LEAST_RECALL = 0.98  # what is promised; on the users that are measured somewhat more is asked for
_RECALL, _AT, _N_MEASURED = 0.99, 10, 256
_LEAST_EFFORT, _MOST_EFFORT = 64, 4096
_FEW_ITEMS = 1000  # the product with so few is faster than any graph
_NUMBERS_AT_ONCE = 2**24


class Approximation:
    """Approximate lists of a model with item vectors.

    A graph over the candidates of a group is made when the first users of the group come. For some of them exact lists
    are made too, and the search looks at more and more items until it finds what they hold; where that does not help,
    the lists of the group are exact ones. Scores are always exact, and so are lists that would not be full.

    Args:
        scorer: has the item vectors of groups, `vectors`, and makes vectors of users, `user_vectors`.
        model_name: for errors.

    Raises:
        PerPEFTError: usearch is not installed, or the model has no item vectors.
    """

    def __init__(self, scorer: Any, model_name: str) -> None:
        if not all(map(find_spec, PACKAGES)):
            raise PerPEFTError("--ann=usearch needs usearch: pip install 'recbole-perpeft[ann]'")
        if not hasattr(scorer, "vectors"):
            raise PerPEFTError(f"--ann: {model_name} has no item vectors that could be searched; leave it out")
        self._scorer = scorer
        self._of: tuple[int | None, Candidates, int] | None = None  # group, candidates and k of what was measured
        self._graph_of: tuple[int | None, Candidates] | None = None  # whose vectors, and candidates
        self._graph: Any = None
        self._vectors = torch.empty(0)
        self._index: Any = None
        self._effort = _LEAST_EFFORT
        self._found, self._wanted, self._n_measured, self._n_exact = 0, 0, 0, 0
        self._seconds = np.zeros(3)  # of graphs, and of the measured users: exact, approximate

    def user_vectors(self, histories: HistoryIndex, rows: np.ndarray, users: np.ndarray, group: int | None) -> Tensor:
        """Vectors of users after their newest items, [B, d]; arguments as of `Scorer.score`."""
        return self._scorer.user_vectors(histories, rows, users, group)

    def best(
        self, of_users: Tensor, group: int | None, candidates: Candidates, seen: tuple[np.ndarray, np.ndarray], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best candidates of each user of a batch; arguments and results as of `best_items`.

        Args:
            of_users: Their vectors, [B, d].
            group: Their group, by whose item vectors they are searched.
            candidates: Who competes.
            seen: Row and item id of pairs that are left out.
            k: Length of a list.
        """
        if self._of is None or self._of[0] != group or self._of[1] is not candidates or self._of[2] != k:
            self._of = (group, candidates, k)
            self._open(of_users, seen)
        return self._exact(of_users, seen) if self._index is None else self._search(of_users, seen)

    def report(self) -> str:
        """What was measured."""
        if not self._n_measured:
            return f"usearch was not needed: no group has more than {_FEW_ITEMS:,} candidates, all lists are exact"
        graphs, exact, approximate = self._seconds
        per_user, recall = 1000 / self._n_measured, self._found / max(1, self._wanted)
        lines = (
            f"usearch: recall at {_AT} {recall:.4f} of {self._n_measured} users against exact lists",
            f"{approximate * per_user:.2f} ms a user instead of {exact * per_user:.2f}",
            f"{graphs:.1f} s for graphs",
        )
        slow = f"; {self._n_exact} groups were not found well enough, their lists are exact" if self._n_exact else ""
        return ", ".join(lines) + slow

    def _open(self, of_users: Tensor, seen: tuple[np.ndarray, np.ndarray]) -> None:
        """The graph of a group, and how much of it has to be looked at."""
        assert self._of is not None
        group, candidates, _ = self._of
        whose = self._scorer.vectors_for(group)
        if self._graph_of is None or self._graph_of[0] != whose or self._graph_of[1] is not candidates:
            self._graph_of = (whose, candidates)
            self._vectors = candidates.of(self._scorer.vectors(whose)).cpu()
            began = perf_counter()
            self._graph = _graph(self._vectors) if len(self._vectors) > _FEW_ITEMS else None
            self._seconds[0] += perf_counter() - began
        self._index = self._graph
        if self._index is None:
            return
        some = seen[0] < _N_MEASURED
        measured = of_users[:_N_MEASURED], (seen[0][some], seen[1][some])
        began = perf_counter()
        expected = self._exact(*measured)[0][:, :_AT]
        exact, approximate, self._effort = perf_counter() - began, 0.0, _LEAST_EFFORT
        while True:
            began = perf_counter()
            found = self._search(*measured)[0][:, :_AT]
            approximate = perf_counter() - began
            hits = int(((expected[:, :, None] == found[:, None]).any(2) & (expected >= 0)).sum())
            if hits >= _RECALL * (expected >= 0).sum() or self._effort >= _MOST_EFFORT:
                break
            self._effort *= 2
        if hits < _RECALL * (expected >= 0).sum():
            self._index, hits, approximate = None, int((expected >= 0).sum()), exact
            self._n_exact += 1
        self._found += hits
        self._wanted += int((expected >= 0).sum())
        self._n_measured += len(expected)
        self._seconds[1:] += exact, approximate

    def _exact(self, of_users: Tensor, seen: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        assert self._of is not None
        of_users = of_users.cpu()
        return best_items(lambda part: of_users @ self._vectors[part].T, self._of[1], seen, self._of[2])

    def _search(self, of_users: Tensor, seen: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """As many as are wanted and were had, less those that were had."""
        assert self._of is not None
        _, candidates, k = self._of
        n_items, of_users = len(candidates.ids), of_users.cpu()
        had = np.unique(seen[0] * n_items + candidates.place[seen[1]])  # an item may have been bought twice
        n_seen = np.bincount(had // n_items, minlength=len(of_users))
        count = min(n_items, k + int(n_seen.max(initial=0)))
        self._index.expansion_search = max(self._effort, count)
        queries = torch.nn.functional.pad(of_users, (0, 1)).numpy()
        if len(queries) == 1:  # usearch would answer in another form
            queries = queries.repeat(2, 0)
        found = self._index.search(queries, count, threads=torch.get_num_threads())
        keys, counts = found.keys[: len(of_users)].astype(np.int64), np.asarray(found.counts)[: len(of_users)]
        places = np.where(np.arange(count) < counts[:, None], keys, -1)
        pairs = np.arange(len(places))[:, None] * n_items + places
        is_out = (places < 0) | np.isin(pairs, had)
        rows = torch.from_numpy(places.clip(0))
        step = max(1, _NUMBERS_AT_ONCE // (count * self._vectors.shape[1]))
        scores = torch.cat(
            [
                torch.einsum("bd,bcd->bc", users, self._vectors[of])
                for users, of in zip(of_users.split(step), rows.split(step), strict=True)
            ]
        ).masked_fill(torch.from_numpy(is_out), -torch.inf)
        best = scores.topk(k, dim=1)
        values = best.values.numpy()
        items = np.where(values > -np.inf, candidates.ids[rows.gather(1, best.indices).numpy()], -1)
        short = np.flatnonzero((items >= 0).sum(1) < np.minimum(k, n_items - n_seen))
        if len(short):
            of_short = np.isin(seen[0], short)
            again = (np.searchsorted(short, seen[0][of_short]), seen[1][of_short])
            items[short], values[short] = self._exact(of_users[torch.from_numpy(short)], again)
        return items, values


def _graph(vectors: Tensor) -> Any:
    """A graph of vectors, by their place; the same vectors give the same graph.

    One more number makes all of one length, so that neighbours by product are neighbours by distance (Bachrach et al.,
    RecSys 2014): a user's vector has a zero there.
    """
    from usearch.index import Index

    squares = vectors.square().sum(1)
    beyond = (squares.max() - squares).clamp_min(0).sqrt()
    index = Index(ndim=vectors.shape[1] + 1, metric="ip", dtype="f32", connectivity=32, expansion_add=128)
    # In one thread: what several add at once depends on who is first.
    index.add(np.arange(len(vectors)), torch.cat([vectors, beyond[:, None]], dim=1).contiguous().numpy(), threads=1)
    return index
