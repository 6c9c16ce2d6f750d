"""Ranks of targets among all items where scores are products of vectors: in pieces, which are never put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from recbole_perpeft.training.ranks import check_scores_of_targets

# A piece that fits a processor's cache is read again for next to nothing; an accelerator wants larger ones.
_SCORES_OF_PROCESSOR, _SCORES_OF_ACCELERATOR = 2**18, 2**26
_MOST_ITEMS = 2**22  # of a piece, so that float32 counts them
_GOALS_AT_ONCE = 256

Pairs = tuple[Tensor, Tensor]  # rows and items
Count = Callable[[Tensor, Tensor], Tensor]


def pairs_of(rows: Tensor, pairs: Pairs | None) -> Pairs | None:
    """Pairs of some rows, ascending, by the place of the row among them."""
    if pairs is None:
        return None
    is_among = torch.isin(pairs[0], rows)
    return torch.searchsorted(rows, pairs[0][is_among]), pairs[1][is_among]


@torch.no_grad()
def ranks_by_products(users: Tensor, catalogue: Tensor, targets: Tensor, masked: Pairs | None) -> Tensor:
    """Rank of one target a user, as `ranks.target_ranks` has it for `users @ catalogue.T` without the pad.

    Args:
        users: [B, d].
        catalogue: vectors of items, [n_items, d], that of the pad first.
        targets: int64 [B], not the pad.
        masked: row and item of every pair that is no candidate, int64 [n] each; None for none.

    Returns:
        int64 [B], on the device of the vectors.

    Raises:
        PerPEFTError: the score of a target is NaN.
    """
    targets = targets.cpu()
    rows, n_items = torch.arange(len(users)), len(catalogue)
    out = (rows[:0], rows[:0]) if masked is None else (masked[0].cpu(), masked[1].cpu())
    is_lost = torch.isin(rows * n_items + targets, out[0] * n_items + out[1]).to(users.device)
    goals = _products(users, catalogue[targets.to(users.device)])
    check_scores_of_targets(goals)
    # A target does not compete with itself, however its product is rounded there.
    out = (torch.cat([out[0], rows]), torch.cat([out[1], targets]))
    surplus = _surplus(users, catalogue, goals, out, _by_signs)
    if surplus.isnan().any():
        surplus = _surplus(users, catalogue, goals, out, _by_comparisons)
    # Of n scores, b better and e equal ones, this is 1 + b + e // 2, as the surplus is b - (n - b - e).
    ranks = 1 + torch.floor((surplus + n_items) / 2).long()
    return torch.where(is_lost | goals.isneginf(), n_items, ranks)


def _products(users: Tensor, items: Tensor) -> Tensor:
    """Product of each user with his item, [B], rounded as those of all users with all items are."""
    pairs = zip(users.split(_GOALS_AT_ONCE), items.split(_GOALS_AT_ONCE), strict=True)
    return torch.cat([(some @ their.T).diagonal() for some, their in pairs])


def _surplus(users: Tensor, catalogue: Tensor, goals: Tensor, out: Pairs, count: Count) -> Tensor:
    """How many more scores are better than each goal than worse, float64 [B]."""
    surplus = torch.zeros_like(goals, dtype=torch.float64)
    for scores in _pieces(users, catalogue, out):
        surplus += count(scores, goals.unsqueeze(1))
    return surplus


def _pieces(users: Tensor, catalogue: Tensor, out: Pairs) -> Iterator[Tensor]:
    """Scores of all users and some items, of all items in turn; -inf for the pad and for pairs that are out.

    All lie in the same memory: new memory would take longer than the product.
    """
    at_once = _SCORES_OF_PROCESSOR if users.device.type == "cpu" else _SCORES_OF_ACCELERATOR
    width = min(max(1, at_once // max(1, len(users))), _MOST_ITEMS)
    starts = torch.arange(0, len(catalogue), width)
    items, order = out[1].sort()
    borders = [*torch.searchsorted(items, starts).tolist(), len(items)]
    rows, items = out[0][order].to(users.device), items.to(users.device)
    memory = users.new_empty(len(users) * min(width, len(catalogue)))
    for number, start in enumerate(starts.tolist()):
        some = catalogue[start : start + width]
        scores = torch.mm(users, some.T, out=memory[: len(users) * len(some)].view(len(users), len(some)))
        if start == 0:
            scores[:, 0] = -torch.inf
        here = slice(borders[number], borders[number + 1])
        scores[rows[here], items[here] - start] = -torch.inf
        yield scores


def _by_signs(scores: Tensor, goals: Tensor) -> Tensor:
    """Better scores less worse ones, [B], in few passes; NaN where a score is none, or as infinite as the goal."""
    return scores.sub_(goals).sign_().sum(1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _by_comparisons(scores: Tensor, goals: Tensor) -> Tensor:
    """The same of any scores: one that is no number is worse than everything."""
    return (scores > goals).sum(1) - (~(scores >= goals)).sum(1)
