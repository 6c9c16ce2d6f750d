"""The rank of a target: one more than the items that beat it, by counting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError

# A piece that fits a processor's cache is read again for next to nothing; an accelerator wants larger ones.
_SCORES_OF_PROCESSOR, _SCORES_OF_ACCELERATOR = 2**18, 2**26
_WIDTH, _MOST_WIDTHS = 256, 128  # items of a piece are a multiple of the first; float32 counts as many
# Products of fewer users are rounded by where an item stands; with more, a piece would leave the cache.
_LEAST_USERS, _MOST_USERS = 16, 1024

Pairs = tuple[Tensor, Tensor]  # rows and items
Count = Callable[[Tensor, Tensor], Tensor]


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of one target a row, 1 for the best; ties share the middle of their places.

    Args:
        scores: float [n, n_items]; -inf marks items that are no candidates. NaN counts as worse than everything.
        targets: int64 [n] column of each row's target.

    Returns:
        int64 [n]. A target that is no candidate itself has the last rank.

    Raises:
        PerPEFTError: the score of a target is NaN.
    """
    target_scores = scores.gather(1, targets.unsqueeze(1))
    n_better = (scores > target_scores).sum(dim=1, dtype=torch.int32)
    n_equal = (scores == target_scores).sum(dim=1, dtype=torch.int32)
    check_scores_of_targets(target_scores)
    ranks = (1 + n_better + (n_equal - 1) // 2).long()
    return torch.where(target_scores.squeeze(1).isneginf(), scores.shape[1], ranks)


def check_scores_of_targets(scores: Tensor) -> None:
    """Raises PerPEFTError if one is NaN."""
    n_nan = int(scores.isnan().sum())
    if n_nan:
        raise PerPEFTError(f"the model scores {n_nan} of {len(scores)} targets as NaN; lower learning_rate")


def pairs_of(rows: Tensor, pairs: Pairs | None) -> Pairs | None:
    """Pairs of some rows, ascending, by the place of the row among them."""
    if pairs is None:
        return None
    is_among = torch.isin(pairs[0], rows)
    return torch.searchsorted(rows, pairs[0][is_among]), pairs[1][is_among]


@torch.no_grad()
def ranks_by_products(users: Tensor, catalogue: Tensor, targets: Tensor, masked: Pairs | None) -> Tensor:
    """Rank of one target a user, as `target_ranks` has it for `users @ catalogue.T` without the pad.

    Args:
        users: [B, d], of 32 bits a number or less.
        catalogue: vectors of items, [n_items, d], that of the pad first.
        targets: int64 [B], not the pad.
        masked: row and item of every pair that is no candidate, int64 [n] each; None for none.

    Returns:
        int64 [B], on the device of the vectors.

    Raises:
        PerPEFTError: the score of a target is NaN.
    """
    targets, masked = targets.cpu(), None if masked is None else (masked[0].cpu(), masked[1].cpu())
    found = [targets[:0].to(users.device)]
    for start in range(0, len(users), _MOST_USERS):
        some = slice(start, start + _MOST_USERS)
        rows = torch.arange(len(users))[some]
        out = pairs_of(rows, masked) or (rows[:0], rows[:0])
        found.append(_ranks(users[some], catalogue, targets[some], out))
    return torch.cat(found)


def _ranks(users: Tensor, catalogue: Tensor, targets: Tensor, out: Pairs) -> Tensor:
    """As `ranks_by_products`, of as many users as fit; ids are on the CPU."""
    rows, n_items = torch.arange(len(users)), len(catalogue)
    is_lost = torch.isin(rows * n_items + targets, out[0] * n_items + out[1]).to(users.device)
    # A target does not compete with itself.
    out = (torch.cat([out[0], rows, rows]), torch.cat([out[1], targets, torch.zeros_like(rows)]))
    pieces = _Pieces.of(users, catalogue)
    goals = pieces.scores_of(targets).masked_fill_(is_lost, 0.0)
    check_scores_of_targets(goals)
    surplus = pieces.surplus(goals, out, _by_signs)
    if surplus.isnan().any():
        surplus = pieces.surplus(goals, out, _by_comparisons)
    # Of n scores, b better and e equal ones, this is 1 + b + e // 2, as the surplus is b - (n - b - e).
    ranks = 1 + torch.floor((surplus + n_items) / 2).long()
    return torch.where(is_lost | goals.isneginf(), n_items, ranks)


@dataclass(frozen=True)
class _Pieces:
    """Products of users with as many items at a time, all in the same memory: new memory would take longer than they.

    All have one shape, as how a product is rounded may depend on it, and equal vectors must have equal scores.
    """

    users: Tensor  # [at least _LEAST_USERS, d]
    catalogue: Tensor  # [at least _WIDTH, d]
    n_items: int
    memory: Tensor  # [B, width]

    @classmethod
    def of(cls, users: Tensor, catalogue: Tensor) -> _Pieces:
        at_once = _SCORES_OF_PROCESSOR if users.device.type == "cpu" else _SCORES_OF_ACCELERATOR
        n_items = len(catalogue)
        users, catalogue = _with_rows(users, _LEAST_USERS), _with_rows(catalogue, _WIDTH)
        widths = max(1, min(at_once // (_WIDTH * len(users)), _MOST_WIDTHS, len(catalogue) // _WIDTH))
        return cls(users, catalogue, n_items, users.new_empty(len(users), widths * _WIDTH))

    @property
    def width(self) -> int:
        return self.memory.shape[1]

    def _scores(self, items: Tensor) -> Tensor:
        """Of items [width, d]; the next call overwrites them."""
        return torch.mm(self.users, items.T, out=self.memory)

    def scores_of(self, items: Tensor) -> Tensor:
        """Score of one item a user, [B]."""
        found = []
        for some in torch.arange(len(items)).split(self.width):
            asked = functional.pad(items[some], (0, self.width - len(some))).to(self.users.device)
            found.append(self._scores(self.catalogue[asked]).diagonal(int(-some[0]))[: len(some)].clone())
        return torch.cat(found)

    def surplus(self, goals: Tensor, out: Pairs, count: Count) -> Tensor:
        """How many more of all items are better than each goal than worse, float64 [B]; those that are out are worse.

        Args:
            goals: a score a user, [B].
            out: users and items that do not compete.
            count: the surplus of a piece, which it may overwrite.
        """
        surplus = torch.zeros_like(goals, dtype=torch.float64)
        items, order = out[1].sort()
        firsts = torch.arange(0, self.n_items, self.width)
        borders = [*torch.searchsorted(items, firsts).tolist(), len(items)]
        rows, items = out[0][order].to(goals.device), items.to(goals.device)
        for number, first in enumerate(firsts.tolist()):
            start = min(first, len(self.catalogue) - self.width)  # the last piece begins with items of the one before
            scores = self._scores(self.catalogue[start : start + self.width])
            here = slice(borders[number], borders[number + 1])
            scores[rows[here], items[here] - start] = -torch.inf
            surplus += count(scores[: len(goals), first - start : self.n_items - start], goals.unsqueeze(1))
        return surplus


def _with_rows(vectors: Tensor, n: int) -> Tensor:
    """Vectors [m, d] with zeros behind them, if they are fewer than n; no copy else."""
    return vectors if len(vectors) >= n else functional.pad(vectors, (0, 0, 0, n - len(vectors)))


def _by_signs(scores: Tensor, goals: Tensor) -> Tensor:
    """Better scores less worse ones, [B], in few passes; NaN where a score may be none."""
    kind = torch.promote_types(scores.dtype, torch.float32)
    total = scores.sub_(goals).sum(1, dtype=kind)  # the sign of NaN is 0
    return torch.where(total.isnan(), total, scores.sign_().sum(1, dtype=kind))


def _by_comparisons(scores: Tensor, goals: Tensor) -> Tensor:
    """The same of any scores: one that is no number is worse than everything."""
    return (scores > goals).sum(1) - (~(scores >= goals)).sum(1)
