"""An atomic file as a table: one row for each of its data lines, or an error that names the line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import line_error
from recbole_perpeft.data.files.text import PIECE_BYTES, UTF_8, text_pieces

_TYPES = tuple(feature_type.value for feature_type in FeatureType)
_LINE_FEED = ord("\n")
_UNIT_SEPARATOR = b"\x1f"  # stands for separators of several bytes, which the quick reader does not know


@dataclass(frozen=True)
class RowLines:
    """Numbers of the lines of rows, of which a file with a hundred million rows keeps none.

    Args:
        n_rows: rows of the file.
        empty: numbers of its empty lines, ascending, int64 [n].
    """

    n_rows: int
    empty: np.ndarray

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, rows: Any) -> Any:
        """Number of the line of a row, or of several, from 1."""
        before = np.searchsorted(self.empty - np.arange(len(self.empty)), np.asarray(rows) + 2, side="right")
        return rows + 2 + before


class AtomicTable(NamedTuple):
    """Rows of an atomic file.

    Attributes:
        types: the columns that were read, in the order of the header.
        rows: the same columns, texts or float64.
        lines: number of the line of each row.
    """

    types: dict[str, FeatureType]
    rows: pd.DataFrame
    lines: RowLines


class TableReader:
    """Some columns of a file, piece by piece.

    Nothing is quoted: a quotation mark is a character as any other. Empty lines are no rows.

    Args:
        path: the file.
        chosen: whether a column is read, by its name.
        separator: between cells.
        encoding: of the file; UTF-8 by default.
        piece_bytes: about how much text is held at a time.

    Attributes:
        types: the columns that are read, in the order of the header.

    Raises:
        PerPEFTError: the file cannot be read, or its first line is no header.
    """

    def __init__(
        self,
        path: Path,
        chosen: Callable[[str], bool],
        separator: str,
        encoding: str | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        pieces = text_pieces(path, encoding, piece_bytes)
        header, _, rest = next(pieces, b"").partition(b"\n")
        columns = _header_types(path, header.decode(), separator)
        self.types = {name: feature_type for name, feature_type in columns.items() if chosen(name)}
        self._path, self._columns, self._separator = path, list(columns), separator
        self._pieces = chain([rest], pieces)
        self._dtypes = {name: np.float64 if kind == FeatureType.FLOAT else str for name, kind in self.types.items()}
        self._n_rows, self._n_lines = 0, 1
        self._empty: list[np.ndarray] = []
        self._cells, self._numbers = _Found(), _Found()

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """The rows, to be read once: cells of the type `float` are numbers, all others texts.

        Empty cells, and those with a word of pandas for missing values such as `NA`, are NaN.

        Raises:
            PerPEFTError: a row has other cells than the header has columns, or a number is none. Of each kind, the
                first is named when all have been counted.
        """
        for piece in self._pieces:
            content = self._rows_of(piece)
            if content and self._dtypes and not self._cells.n:
                rows = self._parsed(content)
                if not self._numbers.n:
                    yield rows
        for found in (self._cells, self._numbers):
            if found.n:
                more = f" ({found.n} such lines)" if found.n > 1 else ""
                raise line_error(self._path, found.line, f"{found.head}{more}{found.tail}")

    @property
    def lines(self) -> RowLines:
        """Numbers of the lines of the rows that were read."""
        return RowLines(self._n_rows, np.concatenate([np.empty(0, dtype=np.int64), *self._empty]))

    def _rows_of(self, piece: bytes) -> bytes:
        """The piece with one byte between cells and without empty lines, if its rows have the cells of the header."""
        separator = self._separator.encode()
        if len(separator) > 1:
            piece, separator = piece.replace(separator, _UNIT_SEPARATOR), _UNIT_SEPARATOR
        text = np.frombuffer(piece, dtype=np.uint8)
        ends = np.flatnonzero(text == _LINE_FEED)
        if piece and not piece.endswith(b"\n"):
            ends = np.append(ends, len(piece))
        marks = np.searchsorted(np.flatnonzero(text == separator[0]), ends)
        is_empty = np.diff(ends, prepend=-1) == 1
        n_cells = np.diff(marks, prepend=0) + 1
        wrong = np.flatnonzero((n_cells != len(self._columns)) & ~is_empty)
        if len(wrong):
            head = f"{n_cells[wrong[0]]} cell(s) instead of {len(self._columns)} as in line 1"
            tail = f"; cells are separated by {self._separator!r} and hold neither that nor a line break"
            self._cells.add(self._n_lines + int(wrong[0]) + 1, len(wrong), head, tail)
        if is_empty.any():  # left out here: the reader would leave out lines of blanks too
            self._empty.append(np.flatnonzero(is_empty) + self._n_lines + 1)
            piece = b"\n".join(filter(None, piece.split(b"\n")))
        self._n_rows += len(ends) - int(is_empty.sum())
        self._n_lines += len(ends)
        return piece

    def _parsed(self, content: bytes) -> pd.DataFrame:
        separator = _UNIT_SEPARATOR.decode() if len(self._separator.encode()) > 1 else self._separator
        n_before, n_rows = self._n_rows, content.count(b"\n") + (not content.endswith(b"\n"))
        try:
            rows = _parse(content, self._columns, self._dtypes, separator)
        except (ValueError, OverflowError) as error:
            numbers = [name for name, dtype in self._dtypes.items() if dtype is not str]
            texts = _parse(content, self._columns, dict.fromkeys(numbers, str), separator)
            wrong = texts.apply(lambda column: pd.to_numeric(column, errors="coerce").isna() & column.notna())
            places = np.flatnonzero(wrong.any(axis=1))
            if not len(places):
                raise PerPEFTError(f"cannot read {self._path}: {error}") from error
            name = wrong.columns[wrong.iloc[places[0]].argmax()]
            line = int(self.lines[n_before - n_rows + int(places[0])])
            problem = f"{texts[name][places[0]]!r} in the column {name} is not a number"
            self._numbers.add(line, len(places), problem)
            return texts
        if len(rows) != n_rows:
            raise PerPEFTError(
                f"{self._path} has {n_rows} rows, but {len(rows)} were read; save it anew as plain UTF-8 text"
            )
        return rows


@dataclass
class _Found:
    """The first line with a problem, and how many there are."""

    line: int = 0
    n: int = 0
    head: str = ""
    tail: str = ""

    def add(self, line: int, n: int, head: str, tail: str = "") -> None:
        """Count lines of which this is the first; its message goes on with their number, and then with the tail."""
        if not self.n:
            self.line, self.head, self.tail = line, head, tail
        self.n += n


def read_header(path: Path, separator: str, encoding: str | None = None) -> dict[str, FeatureType]:
    """Names and types in the header line `name:type<tab>name:type ...`; arguments and errors as of `TableReader`."""
    return TableReader(path, lambda name: True, separator, encoding).types


def read_table(reader: TableReader) -> AtomicTable:
    """All pieces of a file in one table; cells and errors as of `TableReader`."""
    pieces = list(reader)
    columns = {
        name: pd.Series(dtype=np.float64 if kind == FeatureType.FLOAT else object)
        for name, kind in reader.types.items()
    }
    rows = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns)
    return AtomicTable(reader.types, rows, reader.lines)


def numbers_in(
    path: Path, name: str, cells: Iterable[Sequence[str]], lines: RowLines | np.ndarray
) -> list[np.ndarray]:
    """Cells with several numbers each.

    Args:
        path: the file, for the message.
        name: of the column, for the message.
        cells: the numbers of each row as texts.
        lines: number of the line of each row.

    Raises:
        PerPEFTError: a text is no number.
    """
    numbers = []
    for row, cell in enumerate(cells):
        try:
            numbers.append(np.array(cell, dtype=np.float64))
        except ValueError as error:
            raise line_error(
                path, int(lines[row]), f"{' '.join(cell)!r} in the column {name} is not numbers"
            ) from error
    return numbers


def _parse(content: bytes, columns: list[str], dtypes: Mapping[str, type], separator: str) -> pd.DataFrame:
    return pd.read_csv(
        io.BytesIO(content),
        sep=separator,
        header=None,
        names=columns,
        usecols=list(dtypes),
        dtype=dtypes,
        quoting=csv.QUOTE_NONE,
        skip_blank_lines=False,
        float_precision="round_trip",
        lineterminator="\n",
        encoding=UTF_8,
    )


def _header_types(path: Path, header: str, separator: str) -> dict[str, FeatureType]:
    types: dict[str, FeatureType] = {}
    for field in header.split(separator):
        name, _, feature_type = field.partition(":")
        if not name or feature_type not in _TYPES:
            raise PerPEFTError(
                f"{path}, line 1: {field!r} is not name:type with a type of {', '.join(_TYPES)}; "
                f"columns are separated by {separator!r}"
            )
        if name in types:
            raise PerPEFTError(f"{path}, line 1: the column {name} is there twice")
        types[name] = FeatureType(feature_type)
    return types
