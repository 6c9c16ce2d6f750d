"""Arrays on disk with one row an item: written by ranges of rows, and mapped to be read."""

import io
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.digest import checksum, value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import alone, draft_of, is_full, remove, written_whole
from recbole_perpeft.store.arrays import map_array

# Mapped pages that were read count as memory of the process until they are released.
MAX_MAPPED_BYTES = 128 * 2**20
SUM_ROWS = 4096  # that share a checksum where there is no manifest
FAULT_BYTES = 2 * 2**20  # the most that the system maps around a page that is read

Layout = dict[str, tuple[str, tuple[int, ...]]]


class UnusableRowsError(PerPEFTError):
    """What is on the disk cannot be used; computing it again mends that."""


def draft_of_cache(folder: Path) -> Path:
    """Where a cache is built by whoever has its lock; what version 0.1.0 has left of it goes there."""
    draft, earlier = draft_of(folder), folder.with_name(f"{folder.name}.partial")
    if earlier.is_dir() and not draft.exists():
        earlier.rename(draft)
    return draft


@dataclass(frozen=True)
class RowFiles:
    """A folder of `.npy` files that share their number of rows.

    They are written with plain calls, not through memory maps: a full disk is then an error of the call instead of a
    signal that ends the process, and written pages do not count as memory of the writer.

    Attributes:
        folder: where the files lie.
        layout: data type and shape of a row by name of the array.
        n_rows: rows of every array.
    """

    folder: Path
    layout: Layout
    n_rows: int

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def n_bytes(self) -> int:
        """Size of all rows."""
        return self.n_rows * sum(self._row_bytes(name) for name in self.layout)

    def create(self) -> None:
        """Make files of zeros and reserve their space, so that a full disk shows at once.

        Raises:
            OSError: the disk is full.
        """
        reserve = getattr(os, "posix_fallocate", None)  # not on every platform
        for name in self.layout:
            with open(self.path(name), "wb") as file:
                file.write(self._header(name))
                file.truncate(self._file_bytes(name))
                if reserve is not None:
                    reserve(file.fileno(), 0, self._file_bytes(name))

    def are_complete(self) -> bool:
        """Whether all files are there, begin as they were made, and none is cut off."""
        return all(
            self.path(name).is_file()
            and self.path(name).stat().st_size == self._file_bytes(name)
            and self._begins_as_made(name)
            for name in self.layout
        )

    def _begins_as_made(self, name: str) -> bool:
        header = self._header(name)
        with open(self.path(name), "rb") as file:
            return file.read(len(header)) == header

    def write(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write some rows of some arrays, from row `start` on."""
        for name, values in rows.items():
            dtype, _ = self.layout[name]
            with open(self.path(name), "r+b") as file:
                file.seek(self._position(name, start))
                file.write(np.ascontiguousarray(values, dtype=dtype).data)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of one array of complete files."""
        dtype, row_shape = self.layout[name]
        rows = np.empty((stop - start, *row_shape), dtype=dtype)
        with open(self.path(name), "rb") as file:
            file.seek(self._position(name, start))
            file.readinto(rows.data)
        return rows

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        for name in self.layout:
            with open(self.path(name), "r+b") as file:
                os.fsync(file.fileno())

    def sum_starts(self) -> range:
        """Where the rows begin that share a checksum in files that have no manifest."""
        return range(0, self.n_rows, SUM_ROWS)

    def sums(self, name: str) -> np.ndarray:
        """Checksums of an array on the disk, uint32 [n]."""
        chunks = (self.read(name, start, min(start + SUM_ROWS, self.n_rows)) for start in self.sum_starts())
        return np.array([checksum([rows]) for rows in chunks], dtype=np.uint32)

    def stamps(self, besides: str | None = None) -> dict[str, list[int]]:
        """Size and time of change in ns of every file but one."""
        status = {name: self.path(name).stat() for name in self.layout if name != besides}
        return {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()}

    def map(self, name: str) -> np.ndarray:
        """An array as a private memory map.

        Raises:
            UnusableRowsError: the file is missing, cut off, or holds something else.
        """
        dtype, row_shape = self.layout[name]
        path = self.path(name)
        try:
            # Copy on write: torch warns about tensors that share read-only memory. Nothing is ever written.
            array = map_array(path, "c")
        except (OSError, ValueError) as error:
            raise UnusableRowsError(f"{path}: not a complete array ({error}).") from error
        if not array.flags.c_contiguous:
            raise UnusableRowsError(f"{path}: its rows are not one after the other.")
        if array.shape != (self.n_rows, *row_shape) or array.dtype != np.dtype(dtype):
            raise UnusableRowsError(
                f"{path}: holds {array.dtype} {array.shape}, not {dtype} {(self.n_rows, *row_shape)}."
            )
        return array

    def refused(self, error: OSError, folder: Path, title: str) -> PerPEFTError:
        """What to raise where the disk refuses these files.

        Args:
            error: of the disk.
            folder: where the user wants them.
            title: what they hold.
        """
        if not is_full(error):
            return PerPEFTError(
                f"{error.filename or folder}: {error.strerror or error}; the {title} cannot be written."
            )
        return PerPEFTError(
            f"{folder}: the disk is full; {self.n_bytes() / 2**20:,.0f} MiB are needed for the {title}. Free space or "
            f"name a cache folder on another disk."
        )

    def _row_bytes(self, name: str) -> int:
        dtype, row_shape = self.layout[name]
        return np.dtype(dtype).itemsize * int(np.prod(row_shape, dtype=np.int64))

    def _header(self, name: str) -> bytes:
        dtype, row_shape = self.layout[name]
        header = io.BytesIO()
        fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (self.n_rows, *row_shape)}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def _file_bytes(self, name: str) -> int:
        return len(self._header(name)) + self.n_rows * self._row_bytes(name)

    def _position(self, name: str, row: int) -> int:
        return len(self._header(name)) + row * self._row_bytes(name)


class MappedRows:
    """Complete files, mapped into memory, by any number of processes: a pickled copy maps the same files.

    Args:
        files: the files.
        chunk_rows: rows that share a checksum.
        checksums: CRC-32 of every chunk, [n_chunks], by array; others are not looked at. A chunk is compared with its
            checksum when one of its rows is read for the first time.

    Raises:
        UnusableRowsError: a file is missing, cut off, or holds something else.
    """

    def __init__(self, files: RowFiles, chunk_rows: int = 1, checksums: Mapping[str, np.ndarray] | None = None):
        self.files = files
        self._chunk_rows = chunk_rows
        self._checksums = dict(checksums or {})
        self._is_unread = {name: np.ones(len(values), dtype=bool) for name, values in self._checksums.items()}
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which every process makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_maps", "_arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def take(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of one array.

        Args:
            name: of the array.
            rows: LongTensor [n]; -1 for the pad, whose row is zeros.

        Returns:
            [n, ...] as stored, on the CPU.

        Raises:
            PerPEFTError: there is no such row, or it was changed after it was written.
        """
        rows = rows.cpu()
        if len(rows) and not -1 <= int(rows.min()) <= int(rows.max()) < self.files.n_rows:
            raise PerPEFTError(f"{self.files.folder}: has rows 0 to {self.files.n_rows - 1}, not {int(rows.max())}.")
        existing = rows.clamp(min=0)
        self._verify_first_read(name, existing)
        taken = self._gather(name, existing)
        is_pad = rows < 0
        if is_pad.any():
            taken[is_pad] = 0
        return taken

    def verify(self, name: str, rows: Tensor) -> None:
        """Compare the chunks of some rows with their checksums, unless that has been done.

        Raises:
            UnusableRowsError: they were changed after they were written.
        """
        is_unread = self._is_unread.get(name)
        if is_unread is None or not is_unread.any():
            return
        chunks = np.unique(rows.numpy() // self._chunk_rows)
        for chunk in chunks[is_unread[chunks]].tolist():
            start = chunk * self._chunk_rows
            stop = min(start + self._chunk_rows, self.files.n_rows)
            if checksum([self._maps[name][start:stop]]) != self._checksums[name][chunk]:
                raise UnusableRowsError(
                    f"{self.files.path(name)}: rows {start} to {stop - 1} were changed after they were written."
                )
            self._release_pages(name)
            is_unread[chunk] = False

    def _verify_first_read(self, name: str, rows: Tensor) -> None:
        try:
            self.verify(name, rows)
        except UnusableRowsError as error:
            try:
                os.utime(self.files.path(name))  # the next opening finds a changed file, and reads all of it
            except OSError:
                LOGGER.warning(f"{self.files.path(name)}: cannot be marked as damaged; delete the folder")
            raise PerPEFTError(f"{error} Run again: they are computed again.") from error

    def _gather(self, name: str, rows: Tensor) -> Tensor:
        array = self._arrays[name]
        if array.nbytes <= MAX_MAPPED_BYTES:
            return array.index_select(0, rows)
        taken = array.new_empty(len(rows), *array.shape[1:])
        n_rows = max(1, MAX_MAPPED_BYTES // max(array[0].nbytes, FAULT_BYTES))
        for some_rows, place in zip(rows.split(n_rows), taken.split(n_rows), strict=True):
            torch.index_select(array, 0, some_rows, out=place)
            self._release_pages(name)
        return taken

    def _release_pages(self, name: str) -> None:
        """Unmap what was read, where there is such a call; it stays in the file cache of the system."""
        advice, base = getattr(mmap, "MADV_DONTNEED", None), self._maps[name].base
        if advice is not None and isinstance(base, mmap.mmap):
            base.madvise(advice)

    def _map(self) -> None:
        self._maps = {name: self.files.map(name) for name in self.files.layout}
        self._arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in self._maps.items()}


def computed_rows(files: RowFiles, title: str, compute: Callable[[], Iterator[Sequence[Tensor]]]) -> MappedRows:
    """Arrays whose names tell all that they are made of, so that they need no manifest; computed where one is missing.

    They appear whole or not at all, with a file of their checksums: rows that were changed later are computed again.
    Version 0.1.0 wrote no such file; its rows are believed. Processes that want the same arrays wait for the one that
    computes them.

    Args:
        files: Where they belong.
        title: What they hold, for messages.
        compute: Gives the next rows of every array, in the order of the layout.

    Raises:
        PerPEFTError: The disk does not take them.
    """
    try:
        return _verified_rows(files)
    except UnusableRowsError:
        first = files.path(next(iter(files.layout)))
        with alone(first):
            try:
                return _verified_rows(files)
            except UnusableRowsError as problem:
                if first.exists():
                    LOGGER.warning(f"{problem} It is computed again.")
            _write_rows(files, draft_of(first), title, compute)
        return _verified_rows(files)


def _sums_file(files: RowFiles) -> Path:
    return files.folder / f"{next(iter(files.layout))}.json"


def _verified_rows(files: RowFiles) -> MappedRows:
    """Computed rows that are those that were written; all are read if the files have changed since they last were.

    Raises:
        UnusableRowsError: they are missing or damaged.
    """
    path = _sums_file(files)
    if not path.exists() and not path.is_symlink():
        return MappedRows(files)
    try:
        content, own = json.loads(read_regular(path))
        if own != value_hash(content):
            raise ValueError("it was changed after it was written")
        stamps, sums = content["stamps"], {name: np.array(content[name], dtype=np.uint32) for name in files.layout}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UnusableRowsError(f"{path}: is no file of checksums ({str(error)[:200]}).") from error
    if any(values.shape != (len(files.sum_starts()),) for values in sums.values()):
        raise UnusableRowsError(f"{path}: holds another number of checksums.")
    rows = MappedRows(files, SUM_ROWS, sums)
    if files.stamps() != stamps:
        for name in files.layout:
            rows.verify(name, torch.arange(files.n_rows))
        with suppress(PerPEFTError):  # a folder that may only be read is verified anew the next time
            _write_sums(files, sums)
    return rows


def _write_sums(files: RowFiles, sums: Mapping[str, np.ndarray], folder: Path | None = None) -> None:
    """Write the checksums of files, beside them or to another folder."""
    content = {"stamps": files.stamps()} | {name: values.tolist() for name, values in sums.items()}
    with written_whole(_sums_file(replace(files, folder=folder or files.folder))) as draft:
        draft.write_text(json.dumps([content, value_hash(content)]), encoding="utf-8")


def _write_rows(files: RowFiles, draft: Path, title: str, compute: Callable[[], Iterator[Sequence[Tensor]]]) -> None:
    written, start = replace(files, folder=draft), 0
    try:
        remove(draft)
        draft.mkdir()
        written.create()
        for rows in compute():
            named = zip(files.layout, rows, strict=True)
            written.write(start, {name: values.cpu().numpy() for name, values in named})
            start += len(rows[0])
        written.sync()
        _write_sums(written, {name: written.sums(name) for name in files.layout}, files.folder)
        for name in files.layout:
            written.path(name).replace(files.path(name))
    except OSError as error:
        raise files.refused(error, files.folder, title) from error
    finally:
        remove(draft)
