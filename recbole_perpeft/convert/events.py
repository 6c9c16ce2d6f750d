"""Interactions on their way from a source to the log: checked as they come, kept on disk, coded as integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import PAD_TOKEN

BATCH_ROWS = 100_000
# What pandas, with which RecBole reads, takes for an empty cell.
MISSING_WORDS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
_NOT_PLAIN = r'^"|[\t\r\n\x00]'
# In memory an interaction is its user and item as 64-bit hashes and numbers; names stay on disk.
_NUMBERS = {"user": "<u8", "item": "<u8", "time": "<f8", "rating": "<f8"}
_NAMES = pa.schema([("user", pa.string()), ("item", pa.string())])


@dataclass(frozen=True)
class Events:
    """Some interactions, in the order of their file.

    Attributes:
        file: where they stand, for messages.
        lines: int64 [n], the line of each.
        users: ids, string [n].
        items: ids, string [n].
        times: float64 [n], `None` where the order of the file is the only order.
        ratings: float64 [n], `None` where there are none.
    """

    file: Path
    lines: np.ndarray
    users: pa.Array
    items: pa.Array
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None


def batched_events(file: Path, rows: Iterable[tuple]) -> Iterator[Events]:
    """Events of rows of Python values.

    Args:
        file: where they stand.
        rows: line, user, item and, if there are any, time and rating (`None` in all rows where there are none).
    """
    batch: list[tuple] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield _events(file, batch)
            batch = []
    if batch:
        yield _events(file, batch)


def _events(file: Path, batch: list[tuple]) -> Events:
    lines, users, items, *numbers = zip(*batch, strict=True)
    times, ratings = (
        None if not column or column[0] is None else np.array(column, dtype=np.float64)
        for column in [*numbers, (), ()][:2]
    )
    return Events(file, np.array(lines), pa.array(users, pa.string()), pa.array(items, pa.string()), times, ratings)


@dataclass(frozen=True)
class Log:
    """Interactions in the order of the source.

    Attributes:
        rows: int [n], ascending: which of the source's interactions each is.
        users: int32 [n], numbers from 0.
        items: int32 [n], numbers from 0.
        times: float64 [n], or `None`.
    """

    rows: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self, keep: np.ndarray) -> Log:
        """The interactions of a mask [n] or of ascending places."""
        columns: dict[str, Any] = {
            name: None if values is None else values[keep] for name, values in vars(self).items()
        }
        return replace(self, **columns)

    def in_time(self) -> np.ndarray:
        """Places [n] that sort by user, then time; equal times, and logs without times, keep the source's order."""
        if self.times is None:
            return np.argsort(self.users, kind="stable")
        return np.lexsort((self.times, self.users))

    def renumbered(self) -> Log:
        """The same with users and items numbered by first appearance, without gaps."""
        users, items = (pd.factorize(codes)[0].astype(np.int32) for codes in (self.users, self.items))
        return replace(self, users=users, items=items)


class EventSpool:
    """Checks interactions and keeps them on disk until all are there.

    Ten gigabytes of reviews hold some 20 million interactions: their numbers fit in memory, their names need not,
    as most users leave with the k-core filter.

    Args:
        folder: an empty folder of its own.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._columns = (False, False)  # whether there are times, and ratings
        self.n_events = 0

    def fill(self, batches: Iterable[Events]) -> Log:
        """Keep all interactions; the log has users and items numbered by first appearance.

        Raises:
            PerPEFTError: an id or a number cannot be used, or there are no interactions.
        """
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(self._folder / name, "wb")) for name in _NUMBERS}
            with pq.ParquetWriter(self._folder / "names", _NAMES, compression="zstd") as names:
                for events in batches:
                    self._add(events, files, names)
        if not self.n_events:
            raise PerPEFTError("the source has no interactions")
        return self._coded()

    def _add(self, events: Events, files: dict, names: pq.ParquetWriter) -> None:
        if not len(events.lines):
            return
        columns = (events.times is not None, events.ratings is not None)
        if not self.n_events:
            self._columns = columns
        elif self._columns != columns:
            raise PerPEFTError(f"{events.file}: has other columns (time, rating) than the files before it")
        for name, values in (("time", events.times), ("rating", events.ratings)):
            if values is not None:
                _check_numbers(events, name, values)
                files[name].write(values.astype(_NUMBERS[name]).data)  # `tofile` says nothing of a full disk
        coded = {}
        for name, values in (("user", events.users), ("item", events.items)):
            coded[name] = values.dictionary_encode()
            _check_ids(events, name, coded[name])
            files[name].write(_hashes(coded[name]).astype(_NUMBERS[name]).data)
        names.write_table(pa.table({name: column.cast(pa.string()) for name, column in coded.items()}, _NAMES))
        self.n_events += len(events.lines)

    def _coded(self) -> Log:
        has_times, _ = self._columns
        kind = np.int32 if self.n_events < 2**31 else np.int64
        rows = np.arange(self.n_events, dtype=kind)
        return Log(rows, self._codes("user"), self._codes("item"), self._numbers("time") if has_times else None)

    def ratings(self, log: Log) -> np.ndarray | None:
        """Ratings float64 [n] of what is left of the interactions, `None` if the source has none."""
        _, has_ratings = self._columns
        return self._numbers("rating")[log.rows] if has_ratings else None

    def _numbers(self, name: str) -> np.ndarray:
        return np.fromfile(self._folder / name, dtype=_NUMBERS[name])

    def _codes(self, name: str) -> np.ndarray:
        return pd.factorize(self._numbers(name))[0].astype(np.int32)

    def names(self, log: Log) -> dict[str, pa.Array]:
        """Ids by number, for `user` and `item`.

        Args:
            log: what is left of the interactions; its users and items are numbered by first appearance.

        Raises:
            RuntimeError: two ids share a hash.
        """
        chunks: dict[str, list[pa.Array]] = {"user": [], "item": []}
        n_seen = dict.fromkeys(chunks, 0)
        for codes, column, name in self._kept_names(log):
            # A code that is above all before it is one that appears for the first time.
            newest = np.maximum.accumulate(np.concatenate([[n_seen[name] - 1], codes]))
            chunks[name].append(column.take(np.flatnonzero(np.diff(newest))).cast(pa.large_string()))
            n_seen[name] = int(newest[-1]) + 1
        names = {name: pa.concat_arrays(parts) for name, parts in chunks.items()}
        for codes, column, name in self._kept_names(log):
            if not pc.all(pc.equal(names[name].take(codes), column.cast(pa.large_string()))).as_py():
                raise RuntimeError(f"two ids of the column {name} share a 64-bit hash; please report this")
        return names

    def _kept_names(self, log: Log) -> Iterator[tuple[np.ndarray, pa.Array, str]]:
        """Numbers and ids of the interactions that are left, piece by piece, for users and items in turn."""
        with pq.ParquetFile(self._folder / "names") as file:
            start = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                low, high = np.searchsorted(log.rows, [start, start + len(table)])
                places = log.rows[low:high] - start
                start += len(table)
                if not len(places):
                    continue
                for name, codes in (("user", log.users), ("item", log.items)):
                    yield codes[low:high], table[name].combine_chunks().take(places), name


def _hashes(ids: pa.DictionaryArray) -> np.ndarray:
    """64-bit hash of every id, the same on every machine: uint64 [n]."""
    hashes = pd.util.hash_array(ids.dictionary.to_numpy(zero_copy_only=False), categorize=False)
    return hashes[ids.indices.to_numpy()]


def _check_ids(events: Events, name: str, ids: pa.DictionaryArray) -> None:
    """Ids must be plain: what stands in the files must be read alike by RecBole and by the reader of titles."""
    if ids.null_count:
        raise _event_error(events, int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False))), f"has no {name} id")
    words = pa.array([*MISSING_WORDS, PAD_TOKEN])
    wrong = pc.or_(pc.match_substring_regex(ids.dictionary, _NOT_PLAIN), pc.is_in(ids.dictionary, words))
    wrong = wrong.to_numpy(zero_copy_only=False)
    if not wrong.any():
        return
    codes = ids.indices.to_numpy()
    first = int(np.argmax(wrong[codes]))
    found = ids.dictionary[int(codes[first])].as_py()
    raise _event_error(
        events,
        first,
        f"the {name} id {found!r} cannot stand in an atomic file (ids are not empty, {PAD_TOKEN} or words for missing "
        "values such as NA, hold no tabs or line breaks and begin with no quotation mark); rename it",
    )


def _check_numbers(events: Events, name: str, values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise _event_error(events, int(np.argmax(wrong)), f"has no finite {name}; fill it in or remove the line")


def _event_error(events: Events, index: int, problem: str) -> PerPEFTError:
    return PerPEFTError(f"{events.file}, line {events.lines[index]}: {problem}")
