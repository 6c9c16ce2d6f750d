"""Splits that are made row by row: at one time for all users, or by shares; and what came before each target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.protocol import DEFAULT_TARGET, seconds_of
from recbole_perpeft.data.history import HistoryIndex, ranges

_LEAST_TO_VALIDATE = 3  # train rows of a user of which one may leave: two stay, one to be learnt from the other
_DRAW = 2026  # of random targets: the same for every seed of a run, which is to be tested on the same rows


@dataclass(frozen=True)
class LogSplit:
    """Parts of a log in time order.

    Attributes:
        part: number of the part of every interaction, 0 train, 1 valid, 2 test: int64 [n].
        is_row: which interactions of the valid and test part are the (first) target of an evaluation row, bool [n].
        is_target: which interactions are targets, bool [n]; as `is_row` where a row has one target.
        at_one_time: whether a border in time is the same for all users.
    """

    part: np.ndarray
    is_row: np.ndarray
    is_target: np.ndarray
    at_one_time: bool


@dataclass(frozen=True)
class RowHistories:
    """What the user of each evaluation row had before its target.

    Attributes:
        log: all interactions of the users, in time order.
        users: int64 [n_rows].
        lengths: number of his interactions before the target, int64 [n_rows].
    """

    log: HistoryIndex
    users: np.ndarray
    lengths: np.ndarray

    def rows(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items before the targets of some rows.

        Args:
            index: int64 [B] row numbers.

        Returns:
            Position in `index` and item id of every earlier interaction, each int64 [n].
        """
        lengths = self.lengths[index]
        items = self.log.items[ranges(self.log.indptr[self.users[index]], lengths)]
        return np.repeat(np.arange(len(index)), lengths), items

    def of_users(self) -> HistoryIndex:
        """Items that each user had before the latest of his rows."""
        longest = np.zeros(self.log.n_users, dtype=np.int64)
        np.maximum.at(longest, self.users, self.lengths)
        items = self.log.items[ranges(self.log.indptr[:-1], longest)]
        return HistoryIndex(np.concatenate([[0], np.cumsum(longest)]), items)

    def contain(self, items: np.ndarray) -> np.ndarray:
        """Whether the user of each row had an item before: bool [n_rows].

        Args:
            items: an item of each row, int64 [n_rows].
        """
        if not len(items):
            return np.zeros(0, dtype=bool)
        users, owned = self.log.pairs()
        n_items = int(max(owned.max(), items.max())) + 1
        keys, first = np.unique(users * n_items + owned, return_index=True)
        wanted = self.users * n_items + items
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return (keys[place] == wanted) & (first[place] - self.log.indptr[self.users] < self.lengths)


class PartLog(NamedTuple):
    """What the targets of a part may know, where the parts of a log are told interaction by interaction.

    Attributes:
        place: 0 for the train part, 1 for the valid and 2 for the test part.
        rows: places in the log of the rows up to this part, by user and then by time: int64 [n].
        is_first: which of them are the first of their users, bool [n].
        of_part: which of them belong to the part itself, bool [n].
        is_row: which of them are the (first) target of a row of the part, bool [n].
        is_target: which of them are targets of the part, bool [n].
    """

    place: int
    rows: np.ndarray
    is_first: np.ndarray
    of_part: np.ndarray
    is_row: np.ndarray
    is_target: np.ndarray

    def row_histories(self, users: np.ndarray, items: np.ndarray, n_users: int) -> RowHistories:
        """What came before the target of each row, of the users and items of `rows`."""
        targets = np.flatnonzero(self.is_row)
        starts = np.maximum.accumulate(np.where(self.is_first, np.arange(len(users)), 0))
        whole = HistoryIndex.from_pairs(users, items, n_users)
        return RowHistories(whole, users[targets], targets - starts[targets])

    def row_targets(self, items: np.ndarray) -> HistoryIndex | None:
        """The targets of each row, each once, of the items of `rows`; None where every row has one."""
        if np.array_equal(self.is_row, self.is_target):
            return None
        row = np.cumsum(self.is_row)[self.is_target] - 1
        row, targets = np.unique(np.stack([row, items[self.is_target]]), axis=1)
        return HistoryIndex.from_pairs(row, targets, int(self.is_row.sum()))


def split_at_one_time(arguments: Mapping[str, Any], users: np.ndarray, times: np.ndarray, name: str) -> LogSplit:
    """The split `GT` of `eval_args`: the train part is all that happened before a border.

    With two borders the valid part is between them; with one it is the last train interaction of every user with three
    or more. A target needs an earlier interaction of its user: the very first is part of histories only.

    Args:
        arguments: `eval_args`.
        users: of the log in time order, int64 [n].
        times: ascending, float64 [n].
        name: of the data set, for messages.

    Raises:
        PerPEFTError: a part is empty at these borders.
    """
    wanted = arguments["split"]["GT"]
    borders = [_border(each, times) for each in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    if sorted(borders) != borders:
        raise PerPEFTError(f"eval_args: split GT is {wanted}: the test part begins before the valid part; swap them")
    part = np.searchsorted(borders, times, side="right")
    part[part == len(borders)] = 2
    is_first = _firsts(users)
    choose = _CHOICES[arguments.get("target") or DEFAULT_TARGET]
    is_row, is_target = np.zeros(len(users), dtype=bool), np.zeros(len(users), dtype=bool)
    if len(borders) == 1:
        is_row |= _last_of_train(users, part)
        is_target |= is_row
        part[is_row] = 1
        of_time = [2]
    else:
        of_time = [1, 2]
    for place in of_time:
        targets, rows = choose(users, part, place, is_first)
        is_target[targets], is_row[rows] = True, True
    for place, what in ((0, "before"), (2, "at or after")):
        if not (part == place).any():
            raise PerPEFTError(
                f"{name}.inter has no interaction {what} the border {wanted} of eval_args.split GT; its times go from "
                f"{times[0]:.0f} to {times[-1]:.0f} (a date counts as Unix seconds: where times have another unit, "
                "give the border as a number)"
            )
    return LogSplit(part, is_row, is_target, True)


def split_by_shares(
    shares: Sequence[float],
    by_user: bool,
    users: np.ndarray,
    times: np.ndarray,
    borders_of: Callable[[int, list[float]], list[int]],
) -> LogSplit:
    """RecBole's split `RS` of sequences: shares of the targets of each user, or of all in time order.

    A user's first interaction is no target, and belongs to the part of his second.

    Args:
        shares: of the train, valid and test part.
        by_user: whether each user is split on his own.
        users: of the log in time order, int64 [n].
        times: ascending, float64 [n].
        borders_of: RecBole's `_calcu_split_ids`: first row of the valid and of the test part among so many rows.
    """
    exact = [share / sum(shares) for share in shares]
    order = np.argsort(users, kind="stable")
    is_first = np.diff(users[order], prepend=-1) != 0
    starts, owner = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    if by_user:
        counts, kind = np.unique(np.diff(np.append(starts, len(order))) - 1, return_inverse=True)
        borders = np.array([borders_of(int(count), exact) for count in counts])[kind[owner]]
        number = np.arange(len(order)) - starts[owner] - 1
    else:
        targets = np.flatnonzero(~is_first)
        borders = np.array(borders_of(len(targets), exact))
        number = np.zeros(len(order), dtype=np.int64)
        # Rows of one time are in the order of users, as RecBole's are.
        number[targets[np.argsort(times[order][targets], kind="stable")]] = np.arange(len(targets))
    of_ordered = (number[:, None] >= borders).sum(1)
    second = np.minimum(starts + 1, len(order) - 1)
    of_ordered[starts] = np.where(is_first[second], 0, of_ordered[second])
    part, is_row = np.empty_like(of_ordered), np.empty_like(is_first)
    part[order], is_row[order] = of_ordered, (of_ordered > 0) & ~is_first
    return LogSplit(part, is_row, is_row, False)


def all_but_last(users: np.ndarray, n_last: int, n_kept: int) -> np.ndarray:
    """Which rows leave-one-out trains on: all but each user's last ones; bool [n].

    Args:
        users: of the log in time order, int64 [n].
        n_last: how many leave.
        n_kept: how many stay at least: two for a row of a sequence, one for a model of users.
    """
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users)
    before = np.cumsum(counts) - counts
    number = np.arange(len(users)) - before[users[order]]
    is_train = np.empty(len(users), dtype=bool)
    is_train[order] = number < np.maximum(counts - n_last, np.minimum(counts, n_kept))[users[order]]
    return is_train


def shuffled_within_users(users: np.ndarray, chosen: np.ndarray, seed: int) -> np.ndarray:
    """An order of rows in which chosen ones change places with chosen ones of their user: int64 [n]."""
    rows = np.flatnonzero(chosen)
    order = np.arange(len(users))
    drawn = np.random.default_rng(seed).random(len(rows))
    order[rows[np.argsort(users[rows], kind="stable")]] = rows[np.lexsort((drawn, users[rows]))]
    return order


def _border(wanted: float | str, times: np.ndarray) -> float:
    if isinstance(wanted, str):
        return seconds_of(wanted)
    return float(np.quantile(times, wanted, method="higher")) if wanted < 1 else float(wanted)


def _firsts(users: np.ndarray) -> np.ndarray:
    is_first = np.zeros(len(users), dtype=bool)
    is_first[np.unique(users, return_index=True)[1]] = True
    return is_first


def _last_of_train(users: np.ndarray, part: np.ndarray) -> np.ndarray:
    train = np.flatnonzero(part == 0)
    newest = _one_each(users, train[::-1])
    counts = np.bincount(users[train], minlength=int(users.max()) + 1)
    chosen = np.zeros(len(users), dtype=bool)
    chosen[newest[counts[users[newest]] >= _LEAST_TO_VALIDATE]] = True
    return chosen


def _one_each(users: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The first row of each user in the order in which rows are given."""
    return rows[np.unique(users[rows], return_index=True)[1]]


def _candidates(users: np.ndarray, part: np.ndarray, place: int, is_first: np.ndarray) -> np.ndarray:
    return np.flatnonzero((part == place) & ~is_first)


def _last(users, part, place, is_first) -> tuple[np.ndarray, np.ndarray]:
    rows = _one_each(users, _candidates(users, part, place, is_first)[::-1])
    return rows, rows


def _first(users, part, place, is_first) -> tuple[np.ndarray, np.ndarray]:
    rows = _one_each(users, _candidates(users, part, place, is_first))
    return rows, rows


def _random(users, part, place, is_first) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(_DRAW).permutation(_candidates(users, part, place, is_first))
    rows = _one_each(users, rows)
    return rows, rows


def _successive(users, part, place, is_first) -> tuple[np.ndarray, np.ndarray]:
    rows = _candidates(users, part, place, is_first)
    return rows, rows


def _all(users, part, place, is_first) -> tuple[np.ndarray, np.ndarray]:
    """All targets at once, from what their user had before the border."""
    targets = np.flatnonzero((part == place) & np.isin(users, users[part < place]))
    return targets, _one_each(users, targets)


_CHOICES = MappingProxyType(
    {"last": _last, "first": _first, "random": _random, "successive": _successive, "all": _all}
)
