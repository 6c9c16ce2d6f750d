"""What lists are like beyond their hits: coverage, concentration, popularity, novelty, diversity, serendipity.

Definitions and sources are in `docs/beyond_accuracy.md`. Everything is a running sum over the rows of one evaluation,
so that memory grows with groups by items, and with a batch, but not with users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.training.workers import Workers

ContentOf = Callable[[Tensor], Tensor]  # of items, int64 [n]: vectors of length 1 (or 0), float [n, d]
NAMES = ("coverage", "gini", "popularity", "novelty", "diversity", "unexpectedness", "serendipity")
_ROWS_AT_ONCE = 1024  # whose items' content is in memory
_LOOK = 4  # popular items that are looked at first, for each place of a list


class ListFigures:
    """Counts the lists of one evaluation, those of each user group apart.

    Args:
        cuts: lengths of lists.
        train_counts: int64 [n_items], interactions of each item in the train part; item 0 is the pad.
        user_group: int64 [n_users], group of each user, -1 for none; None where the model has no groups.
        content_of: vectors by which the items of a list differ; None leaves diversity out.
    """

    def __init__(
        self,
        cuts: Sequence[int],
        train_counts: np.ndarray,
        user_group: Tensor | None = None,
        content_of: ContentOf | None = None,
    ) -> None:
        self._cuts = sorted(set(cuts))
        self._train_counts = torch.from_numpy(train_counts)
        self._popular = torch.from_numpy(np.argsort(-train_counts[1:], kind="stable") + 1)
        self._user_group = None if user_group is None else user_group.cpu()
        self._content_of = content_of
        n_slots = 1 if self._user_group is None else int(self._user_group.max()) + 2  # the first has no group
        shape = n_slots, len(self._cuts)
        self._lists = np.zeros(n_slots, dtype=np.int64)
        self._shown = torch.zeros(*reversed(shape), len(train_counts), dtype=torch.int64)  # between two cuts each
        self._sums = {name: np.zeros(shape) for name in ("unexpected", "serendipity", "diversity", "of_several")}

    def add(self, scores: Tensor, users: Tensor, positive_u: Tensor, positive_i: Tensor) -> None:
        """Count the lists of a batch.

        Args:
            scores: float [n, n_items]; -inf marks items that are no candidates. NaN counts as no candidate.
            users: int64 [n].
            positive_u: row of each target, int64 [m].
            positive_i: the targets, int64 [m].
        """
        n_places = min(self._cuts[-1], scores.shape[1])
        best = scores.topk(n_places, dim=1)
        if best.values.isnan().any():
            scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
            best = scores.topk(n_places, dim=1)
        items, listed = best.indices.cpu(), (best.values > -torch.inf).cpu()
        slots = torch.zeros_like(users.cpu()) if self._user_group is None else self._user_group[users.cpu()] + 1
        self._lists += np.bincount(slots, minlength=len(self._lists))
        self._count_shown(items, listed, slots)
        rows = torch.arange(len(items)).unsqueeze(1) * len(self._train_counts)
        hits = torch.isin(rows + items, positive_u.cpu() * len(self._train_counts) + positive_i.cpu()) & listed
        for column, least in enumerate(self._least_expected(scores).unbind(1)):
            place = slice(self._cuts[column])
            unexpected = (self._train_counts[items[:, place]] < least.unsqueeze(1)) & listed[:, place]
            self._sum("unexpected", column, slots, unexpected.sum(1))
            self._sum("serendipity", column, slots, (unexpected & hits[:, place]).sum(1))
        if self._content_of is not None:
            for start in range(0, len(items), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                self._add_diversity(self._content_of, items[part], listed[part], slots[part])

    def add_up(self, workers: Workers) -> None:
        """Count what the other processes have counted, too."""
        own = {"lists": torch.from_numpy(self._lists), "shown": self._shown}
        every = workers.gather(own | {name: torch.from_numpy(values) for name, values in self._sums.items()})
        of_all = {name: torch.stack([one[name] for one in every]).sum(0) for name in every[0]}
        self._lists, self._shown = of_all.pop("lists").numpy(), of_all.pop("shown")
        self._sums = {name: values.numpy() for name, values in of_all.items()}

    def _count_shown(self, items: Tensor, listed: Tensor, slots: Tensor) -> None:
        begin = 0
        for column, cut in enumerate(self._cuts):
            inside = listed[:, begin:cut]
            places = (slots.unsqueeze(1) * len(self._train_counts) + items[:, begin:cut])[inside]
            self._shown[column].view(-1).index_add_(0, places, torch.ones_like(places))
            begin = cut

    def _sum(self, name: str, column: int, slots: Tensor, values: Tensor) -> None:
        self._sums[name][:, column] += np.bincount(slots, values.double(), minlength=len(self._lists))

    def _least_expected(self, scores: Tensor) -> Tensor:
        """Train interactions of each row's k-th most popular candidate, int64 [n, number of cuts]; 0 if it has less.

        Few popular items say it of most rows; those whose history has many of them look further.
        """
        least = torch.zeros(len(scores), len(self._cuts), dtype=torch.int64)
        rows, n_looked = torch.arange(len(scores)), _LOOK * self._cuts[-1]
        counts = torch.cat([self._train_counts[self._popular], torch.zeros(1, dtype=torch.int64)])
        while len(rows):
            looked = self._popular[:n_looked]
            there = scores[rows.to(scores.device).unsqueeze(1), looked.to(scores.device)] > -torch.inf
            n_before = there.cumsum(1, dtype=torch.int32).cpu()
            whole = len(looked) == len(self._popular)
            done = (n_before[:, -1] >= self._cuts[-1]) | whole
            for column, cut in enumerate(self._cuts):
                place = (n_before[done] < cut).sum(1)
                least[rows[done], column] = counts[torch.where(place < len(looked), place, len(self._popular))]
            rows, n_looked = rows[~done], n_looked * _LOOK
        return least

    def _add_diversity(self, content_of: ContentOf, items: Tensor, listed: Tensor, slots: Tensor) -> None:
        """Mean distance of the pairs of each list; of unit vectors it follows from the length of their sum."""
        present, place = items.unique(return_inverse=True)
        vectors = content_of(present).float().cpu()
        squares = vectors.square().sum(1)
        for column, cut in enumerate(self._cuts):
            own, weight = place[:, :cut].contiguous(), listed[:, :cut].float().contiguous()
            summed = functional.embedding_bag(own, vectors, per_sample_weights=weight, mode="sum")
            n_listed = weight.sum(1)
            cosines = (summed.square().sum(1) - (squares[own] * weight).sum(1)) / (n_listed * (n_listed - 1))
            several = n_listed > 1
            self._sum("diversity", column, slots, torch.where(several, 1 - cosines, 0.0))
            self._sum("of_several", column, slots, several)

    def overall(self) -> dict[str, float]:
        """Figures of all lists, such as `coverage@10`; those that nothing tells are left out."""
        return self._figures(np.arange(len(self._lists)))

    def by_group(self) -> list[dict[str, float]]:
        """`group`, number of `lists` and figures of each group that has some."""
        present = [slot for slot in range(1, len(self._lists)) if self._lists[slot]]
        return [
            {"group": slot - 1, "lists": int(self._lists[slot])} | self._figures(np.array([slot])) for slot in present
        ]

    def _figures(self, slots: np.ndarray) -> dict[str, float]:
        shown = self._shown[:, slots].sum(1).cumsum(0).numpy()[:, 1:]
        sums = {name: values[slots].sum(0) for name, values in self._sums.items()}
        found: dict[str, float] = {}
        for column, cut in enumerate(self._cuts):
            if shown[column].any():
                of_cut = {name: values[column] for name, values in sums.items()}
                figures = dict(self._of_cut(shown[column], of_cut, self._lists[slots].sum()))
                found |= {f"{name}@{cut}": float(figures[name]) for name in NAMES if name in figures}
        return found

    def _of_cut(self, shown: np.ndarray, sums: dict[str, float], n_lists: int) -> Iterator[tuple[str, float]]:
        counts = self._train_counts[1:].numpy()
        n_places = shown.sum()
        yield "coverage", (shown > 0).mean()
        order = np.arange(1, len(shown) + 1)
        yield "gini", ((2 * order - len(shown) - 1) * np.sort(shown)).sum() / (len(shown) * n_places)
        yield "popularity", (shown * counts).sum() / n_places
        share = (counts + 1) / (counts + 1).sum()
        yield "novelty", -(shown * np.log2(share)).sum() / n_places
        if sums["of_several"]:
            yield "diversity", sums["diversity"] / sums["of_several"]
        yield "unexpectedness", sums["unexpected"] / n_places
        yield "serendipity", sums["serendipity"] / n_lists
