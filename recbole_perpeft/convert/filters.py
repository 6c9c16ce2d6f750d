"""Filters of a log, each a mask over its interactions, in the order in which they apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recbole_perpeft.convert.events import Log
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting


@dataclass(frozen=True)
class FilterSettings(Settings):
    """Which interactions stay."""

    repeats: str = setting(
        "keep",
        "repeated interactions of a user with an item: keep all, drop_events (keep one of those with equal time) or "
        "drop_items (keep the earliest of all)",
        choices=("keep", "drop_events", "drop_items"),
    )
    k_core: int = setting(0, "users and items with fewer interactions leave, again and again; 0: no filter", least=0)
    min_len: int = setting(0, "users with fewer interactions leave, once and after the k-core", least=0)
    keep_last: int = setting(0, "only so many latest interactions of each user stay; 0 for all", least=0)

    def steps(self) -> dict[str, Callable[[Log], np.ndarray]]:
        """The filters that do something: masks [n] by name."""
        steps: dict[str, Callable[[Log], np.ndarray]] = {}
        if self.repeats != "keep":
            steps[f"repeats {self.repeats}"] = lambda log: first_of_repeats(log, self.repeats == "drop_events")
        if self.k_core > 1:
            steps[f"k_core {self.k_core}"] = lambda log: in_k_core(log, self.k_core)
        if self.min_len > 1:
            steps[f"min_len {self.min_len}"] = lambda log: of_long_users(log, self.min_len)
        if self.keep_last:
            steps[f"keep_last {self.keep_last}"] = lambda log: among_last(log, self.keep_last)
        return steps


def first_of_repeats(log: Log, equal_times_only: bool) -> np.ndarray:
    """The earliest interaction of each user with each item, or of each user, item and time: bool [n].

    Raises:
        PerPEFTError: times are asked for and there are none.
    """
    if equal_times_only and log.times is None:
        raise PerPEFTError("repeats: drop_events compares times, and this source has none")
    times = [] if log.times is None else [log.times]
    order = np.lexsort((*times, log.items, log.users))
    columns = [log.users, log.items, *(times if equal_times_only else [])]
    is_new = np.zeros(len(log), dtype=bool)
    is_new[:1] = True
    for column in columns:
        ordered = column[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    keep = np.empty(len(log), dtype=bool)
    keep[order] = is_new
    return keep


def in_k_core(log: Log, k: int) -> np.ndarray:
    """The interactions of the largest part of the log in which every user and item has at least k: bool [n]."""
    left = np.arange(len(log))
    while True:
        users, items = log.users[left], log.items[left]
        stays = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if stays.all():
            keep = np.zeros(len(log), dtype=bool)
            keep[left] = True
            return keep
        left = left[stays]


def of_long_users(log: Log, least: int) -> np.ndarray:
    """The interactions of users with at least so many: bool [n]."""
    return (np.bincount(log.users) >= least)[log.users]


def among_last(log: Log, n_last: int) -> np.ndarray:
    """The latest interactions of each user: bool [n]."""
    keep = np.zeros(len(log), dtype=bool)
    order = log.in_time()
    counts = np.bincount(log.users)
    ends = np.cumsum(counts)[log.users[order]]
    keep[order] = ends - np.arange(len(log)) <= n_last
    return keep
