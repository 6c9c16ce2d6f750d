"""Arrays on disk with one row an item, written by ranges of rows from several processes."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import draft_of
from recbole_perpeft.data.content import PAD_TOKEN


def rows_of_tokens(tokens: Sequence[str], item_tokens: Sequence[str], folder: Path) -> Tensor:
    """Row of each item, int64 [n]; -1 for the pad.

    Args:
        tokens: items in the order of the rows.
        item_tokens: items to find, [n].
        folder: where the rows are, for the message.

    Raises:
        PerPEFTError: an item has no row.
    """
    row_of = {token: row for row, token in enumerate(tokens)}
    row_of[PAD_TOKEN] = -1
    try:
        return torch.tensor([row_of[str(token)] for token in item_tokens], dtype=torch.long)
    except KeyError as error:
        raise PerPEFTError(f"{folder}: has no item {error.args[0]!r}; add it to the item file.") from error


def draft_of_cache(folder: Path) -> Path:
    """Where a cache is built by whoever has its lock. A build that version 0.1.0 has left goes on there."""
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
    layout: dict[str, tuple[str, tuple[int, ...]]]
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
        """Whether all files are there and none is cut off."""
        return all(
            self.path(name).is_file() and self.path(name).stat().st_size == self._file_bytes(name)
            for name in self.layout
        )

    def check(self) -> None:
        """Open every array.

        Raises:
            PerPEFTError: a file is missing, cut off, or holds something else.
        """
        for name in self.layout:
            self.map(name)

    def write(self, start: int, rows: dict[str, np.ndarray]) -> None:
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

    def map(self, name: str) -> np.memmap:
        """An array as a private memory map.

        Raises:
            PerPEFTError: the file is missing, cut off, or holds something else.
        """
        dtype, row_shape = self.layout[name]
        path = self.path(name)
        try:
            # Copy on write: torch warns about tensors that share read-only memory. Nothing is ever written.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PerPEFTError(f"{path}: not a complete array ({error}).") from error
        if array.shape != (self.n_rows, *row_shape) or array.dtype != np.dtype(dtype):
            raise PerPEFTError(f"{path}: holds {array.dtype} {array.shape}, not {dtype} {(self.n_rows, *row_shape)}.")
        return array

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
