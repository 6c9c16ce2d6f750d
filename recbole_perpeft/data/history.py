"""Which items users had, and when: what is masked, what negatives avoid, what counts as popular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pandas.util import hash_array
from recbole.data.dataset import Dataset

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.files.coded_log import counts_of

PHASES = ("train", "valid", "test")
# Whose items a user had before the rows of a phase.
EARLIER_PHASES = {"train": ("train",), "valid": ("train",), "test": ("train", "valid")}
_RANGES_AT_ONCE = 2**18
_SORTED_AT_ONCE = 2**20


@dataclass(frozen=True)
class HistoryIndex:
    """Items of every user, in compressed rows.

    Attributes:
        indptr: int64 [n_users + 1]; the items of user `u` are `items[indptr[u]:indptr[u + 1]]`.
        items: int32 or int64 [n_interactions]; item ids in time order, repeated purchases included.
    """

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def from_pairs(cls, users: np.ndarray, items: np.ndarray, n_users: int) -> HistoryIndex:
        """Index of (user, item) pairs; a user's items keep the order of the pairs.

        Args:
            users: int64 [n] user ids below `n_users`.
            items: int64 [n] item ids.
            n_users: number of user ids, the pad included.
        """
        order = np.argsort(users, kind="stable")
        return cls(borders(np.bincount(users, minlength=n_users)), items[order])

    @property
    def n_users(self) -> int:
        """Number of user ids, the pad included."""
        return len(self.indptr) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of items of every user, int64 [n_users]."""
        return np.diff(self.indptr)

    @property
    def users(self) -> np.ndarray:
        """Users with items, int64, ascending."""
        return np.flatnonzero(self.lengths)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of all interactions, each int64 [n_interactions]."""
        return np.repeat(np.arange(self.n_users), self.lengths), self.items.astype(np.int64, copy=False)

    def rows(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of some users.

        Args:
            users: int64 [B] user ids.

        Returns:
            Position in `users` and item id of every interaction of theirs, each int64 [n].
        """
        starts = self.indptr[users]
        lengths = self.indptr[users + 1] - starts
        items = self.items[ranges(starts, lengths)].astype(np.int64, copy=False)
        return np.repeat(np.arange(len(users)), lengths), items

    def newest(self, users: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The last items of some users, as rows of RecBole's form.

        Args:
            users: int64 [B] user ids.
            width: L, items of a row at most.

        Returns:
            int64 [B, L], padded on the right with 0, and the number of items of each row, int64 [B].
        """
        ends = self.indptr[users + 1]
        lengths = np.minimum(ends - self.indptr[users], width)
        return windows(self.items, ends, lengths, width).astype(np.int64, copy=False), lengths


def history_of(built_datasets: Sequence[Dataset], phase: str) -> HistoryIndex:
    """Items that every user had before the rows of a phase.

    Args:
        built_datasets: train, valid and test data set as `build()` of any data set class returns them: one row an
            interaction, RecBole's augmented rows, or the rows of `SequenceDataset`.
        phase: "train" (train items, what negatives must avoid), "valid" (the same) or "test" (train and valid items).

    Raises:
        PerPEFTError: if the phase is none of the three.
    """
    if phase not in EARLIER_PHASES:
        raise PerPEFTError(f"Unknown phase {phase!r}: choose one of {', '.join(EARLIER_PHASES)}.")
    return union_of(built_datasets, EARLIER_PHASES[phase])


def union_of(built_datasets: Sequence[Dataset], phases: Sequence[str] = PHASES) -> HistoryIndex:
    """Items of every user in some of the parts, by default in all."""
    by_phase = dict(zip(PHASES, interactions_of(built_datasets), strict=True))
    users, items = (np.concatenate(column) for column in zip(*map(by_phase.get, phases), strict=True))
    return HistoryIndex.from_pairs(users, items, built_datasets[0].user_num)


def interactions_of(built_datasets: Sequence[Dataset]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Users and items of the interactions that each part stands for, in time order within a user.

    Args:
        built_datasets: as for `history_of`.
    """
    known = [history for dataset in built_datasets if (history := getattr(dataset, "phase_history", None))]
    if len(known) == len(built_datasets):
        return [history.pairs() for history in known]
    rows = [dataset.inter_feat for dataset in built_datasets]
    uid, iid = built_datasets[0].uid_field, built_datasets[0].iid_field
    pairs = [(part[uid].numpy(), part[iid].numpy()) for part in rows]
    config = built_datasets[0].config
    if config["ITEM_LIST_LENGTH_FIELD"] in rows[0]:
        # RecBole's rows have all items as targets but the first of each user, with which his first row begins.
        newcomers = _first_rows(pairs)
        lists = [part[iid + config["LIST_SUFFIX"]].numpy()[first] for part, first in zip(rows, newcomers, strict=True)]
        is_one = [
            part[config["ITEM_LIST_LENGTH_FIELD"]].numpy()[new] == 1 for part, new in zip(rows, newcomers, strict=True)
        ]
        pairs = [
            (np.concatenate([users[new][one], users]), np.concatenate([first[one][:, 0], items]))
            for (users, items), new, one, first in zip(pairs, newcomers, is_one, lists, strict=True)
        ]
    return pairs


def _first_rows(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Of each part, the rows with which a user appears for the first time."""
    users = np.concatenate([users for users, _ in pairs])
    places = np.sort(np.unique(users, return_index=True)[1])
    ends = np.cumsum([len(users) for users, _ in pairs])
    of_parts = np.split(places, np.searchsorted(places, ends[:-1]))
    return [part - start for part, start in zip(of_parts, [0, *ends[:-1]], strict=True)]


def borders(counts: np.ndarray) -> np.ndarray:
    """Row borders int64 [n + 1] of rows of the given sizes."""
    return np.concatenate([[0], np.cumsum(counts)])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[r], starts[r] + 1, ...` of `lengths[r]` positions, for all rows one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())


def of_ranges(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Values at positions from a start up to an end, of ranges that follow each other and are not empty."""
    steps = np.zeros(len(values) + 1, dtype=np.int8)
    steps[starts] += 1
    steps[ends] -= 1  # also where the next range begins
    return values[np.cumsum(steps[:-1], dtype=np.int8).view(bool)]


def windows(items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """The `lengths[r]` items before position `ends[r]`, padded on the right with 0: [n_rows, width], as `items`."""
    filled = np.zeros((len(ends), width), dtype=items.dtype)
    full = np.flatnonzero(lengths == width)
    if len(full):  # most of a long log's: pieces of it are copied as they are
        whole = np.lib.stride_tricks.sliding_window_view(items, width)
        for start in range(0, len(full), _RANGES_AT_ONCE):
            rows = full[start : start + _RANGES_AT_ONCE]
            filled[rows] = whole[ends[rows] - width]
    short = np.flatnonzero(lengths != width)
    for start in range(0, len(short), _RANGES_AT_ONCE):
        rows = short[start : start + _RANGES_AT_ONCE]
        here = lengths[rows]
        filled[np.repeat(rows, here), ranges(np.zeros_like(here), here)] = items[ranges(ends[rows] - here, here)]
    return filled


def by_user_and_time(users: np.ndarray, times: np.ndarray, n_users: int) -> np.ndarray:
    """Rows of a log by user and then by time, those of one time in their order: int32 [n], or int64 of 2^31 rows.

    All is done in pieces: a sort of the whole holds 24 bytes a row, and misses the caches all the time.

    Args:
        users: integers [n] below `n_users`.
        times: float64 [n].
        n_users: number of user ids, the pad included.
    """
    counts = counts_of(users, n_users)
    starts, free = borders(counts), borders(counts)[:-1]
    order: np.ndarray = np.empty(len(users), np.int32 if len(users) < 2**31 else np.int64)
    for start in range(0, len(users), _SORTED_AT_ONCE):
        piece = users[start : start + _SORTED_AT_ONCE]
        by_user = np.argsort(piece, kind="stable")
        of_rows = piece[by_user]
        found = np.bincount(of_rows, minlength=n_users)
        order[np.arange(len(by_user)) + (free - (np.cumsum(found) - found))[of_rows]] = by_user + start
        free += found
    first = 0
    while first < n_users:
        # Whole users; numbers of 2 bytes are sorted in a tenth of the time.
        last = int(np.searchsorted(starts, starts[first] + _SORTED_AT_ONCE, side="right")) - 1
        last = max(first + 1, min(last, first + 2**16 - 1, n_users))
        rows = order[starts[first] : starts[last]]
        of_rows = np.repeat(np.arange(last - first, dtype=np.uint16), counts[first:last])
        by_time = np.argsort(times[rows], kind="stable")
        rows[:] = rows[by_time[np.argsort(of_rows[by_time], kind="stable")]]
        first = last
    return order


def numbers_of_ids(seeds: Sequence[int], *ids: np.ndarray) -> np.ndarray:
    """A random number for each row of ids, which follows from these and the seeds alone: uint64 [n].

    Args:
        seeds: as for NumPy's `SeedSequence`.
        ids: columns, int64 [n] each, at least one.
    """
    numbers = np.random.SeedSequence(list(seeds)).generate_state(1, np.uint64)
    for column in ids:
        numbers = hash_array(column.astype(np.uint64) ^ numbers)
    return numbers


def rows_of_sample(users: np.ndarray, n_users: int, seed: int) -> np.ndarray:
    """Rows of some users, drawn by a seed, in their order; the same users for every model that has them.

    Args:
        users: int64 [n], the user of each row.
        n_users: how many users; 0 for all.
        seed: draws them.
    """
    known = np.unique(users)
    if not n_users or n_users >= len(known):
        return np.arange(len(users))
    # Whether a user is drawn must not depend on which others a model tests: those of the smallest random numbers are.
    order = np.argpartition(numbers_of_ids((seed,), known), n_users)
    return np.flatnonzero(np.isin(users, known[order[:n_users]]))
