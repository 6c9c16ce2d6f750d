"""What follows from the columns of a kept log, in files beside them: made once, and believed while it is of that log.

A file says of what it was made and has a checksum. What is missing, damaged or made of anything else is made again, in
its place; where nothing can be written, it is made by every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from recbole_perpeft.core.digest import checksum, value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import open_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.schema import misfit
from recbole_perpeft.core.whole import alone, write_synced, written_whole

FORMAT = "made 1"  # another where something is made in another way: earlier files are of no use then
PREFIX = "made_"
_HEAD_BYTES = 256
_KINDS = ("|u1", "<i4", "<i8")
_SCHEMA = {"of": str, "kind": str, "n": int, "sum": int}


class Beside(NamedTuple):
    """Files beside the columns of a log.

    Attributes:
        folder: of the kept log.
        text: hash of the text that was read.
    """

    folder: Path
    text: str

    def array(self, name: str, about: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array, mapped where it has been made before.

        Args:
            name: of the file.
            about: with the text, all that the array follows from, as JSON holds it.
            make: gives the array, of bytes or of integers of 4 or 8 bytes, one-dimensional.
        """
        of, path = value_hash([FORMAT, self.text, about]), self.folder / f"{PREFIX}{name}"
        with suppress(OSError, ValueError, KeyError):
            return _read(path, of)
        made = make()
        # A process that finds another one at it, or the folder replaced, goes on with what it has in memory.
        try:
            with alone(path, patience=0), written_whole(path) as draft:
                _write(draft, of, made)
        except PerPEFTError as error:
            LOGGER.debug(f"{path.name} is not kept: {error}")
        return made

    def text_of(self, name: str, about: Any, make: Callable[[], str]) -> str:
        """As `array`, of a text."""
        return bytes(self.array(name, about, lambda: np.frombuffer(make().encode(), np.uint8))).decode()


def sums_of(columns: dict[str, np.ndarray]) -> list[list[Any]]:
    """Names, types, lengths and checksums of columns: with the text of a log they tell two states of it apart."""
    return [[name, values.dtype.str, len(values), checksum([values])] for name, values in columns.items()]


def _write(path: Path, of: str, values: np.ndarray) -> None:
    head = json.dumps({"of": of, "kind": values.dtype.str, "n": len(values), "sum": checksum([values])})
    write_synced(path, head.encode().ljust(_HEAD_BYTES), np.ascontiguousarray(values).data)


def _read(path: Path, of: str) -> np.ndarray:
    """The array of a file.

    Raises:
        OSError: there is none.
        ValueError, KeyError: it is damaged, or of something else.
    """
    with open_regular(path) as file:
        head = json.loads(file.read(_HEAD_BYTES))
        if not isinstance(head, dict) or misfit(head, _SCHEMA) or head["of"] != of or head["kind"] not in _KINDS:
            raise ValueError(f"{path.name} is of something else")
        values = mapped(file, np.dtype(head["kind"]), head["n"], _HEAD_BYTES)
    if checksum([values]) != head["sum"]:
        raise ValueError(f"{path.name} was changed after it was written")
    return values


def mapped(file: BinaryIO, kind: np.dtype, n: int, offset: int = 0) -> np.ndarray:
    """The array that an open file ends with, to be read, and changed in memory alone.

    Raises:
        ValueError: the file has another length.
    """
    size, wanted = os.fstat(file.fileno()).st_size, offset + n * kind.itemsize
    if n < 0 or size != wanted:
        raise ValueError(f"{Path(file.name).name} has {size:,} bytes, not {wanted:,}")
    return np.asarray(np.memmap(file, kind, "c", offset, (n,))) if n else np.empty(0, kind)
