"""A log as numbers: 4 bytes for a user, an item or another token, 8 for a number, and each token once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_perpeft.data.files.atomic_table import AtomicTable, RowLines, TableReader
from recbole_perpeft.data.files.beside import Beside

ROWS_AT_ONCE = 2**22


class CodedLog(NamedTuple):
    """The columns of an atomic file.

    Attributes:
        types: by name of the column.
        columns: of tokens int32 [n], their numbers in the order in which they appear first, -1 where a cell is empty;
            of numbers float64 [n]; of sequences texts.
        tokens: by name of a column of tokens, the tokens by their numbers.
        lines: numbers of the lines of the rows.
        beside: files of what follows from the columns; None of a log that is not kept.
    """

    types: dict[str, FeatureType]
    columns: dict[str, np.ndarray]
    tokens: dict[str, list[str]]
    lines: RowLines
    beside: Beside | None = None

    def counts(self, name: str) -> np.ndarray:
        """How often each token of a column is there, int64 [n_tokens]."""
        values, n = self.columns[name], len(self.tokens[name])
        if self.beside is None:
            return counts_of(values, n)
        place = list(self.types).index(name)  # names of columns need not be names of files
        return self.beside.array(f"counts_{place}", [name, len(values), n], lambda: counts_of(values, n))

    def table(self) -> AtomicTable:
        """The same as a table, with columns of tokens as categories; numbers are not copied."""
        columns = {
            name: _categories(values, self.tokens[name]) if name in self.tokens else values
            for name, values in self.columns.items()
        }
        return AtomicTable(self.types, pd.DataFrame(columns, copy=False), self.lines)


def read_coded(reader: TableReader) -> CodedLog:
    """Read a file into memory; errors as of `TableReader`."""
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, dtype(kind))] for name, kind in reader.types.items()}
    tokens = add_pieces(reader, lambda name, values: parts[name].append(values))
    # One column at a time: two copies of all would be the peak.
    columns = {name: np.concatenate(parts.pop(name)) for name in reader.types}
    return CodedLog(reader.types, columns, tokens, reader.lines)


def add_pieces(reader: TableReader, add: Callable[[str, np.ndarray], None]) -> dict[str, list[str]]:
    """Read a file and hand on its columns piece by piece.

    Args:
        reader: of the file.
        add: gets name and values of a column, as `CodedLog.columns` has them.

    Returns:
        `CodedLog.tokens`.
    """
    numbers: Mapping[str, dict[str, int]] = {
        name: {} for name, kind in reader.types.items() if kind == FeatureType.TOKEN
    }
    for rows in reader:
        for name in rows:
            values = rows[name].to_numpy()
            add(name, _numbered(values, numbers[name]) if name in numbers else values)
    return {name: list(known) for name, known in numbers.items()}


def _categories(numbers: np.ndarray, tokens: list[str]) -> pd.Categorical:
    names = pd.Index(np.array(tokens, dtype=object), dtype=object)  # of an array in a third of the time of a list
    return pd.Categorical.from_codes(numbers, dtype=pd.CategoricalDtype(names), validate=False)


def counts_of(numbers: np.ndarray, n: int) -> np.ndarray:
    """How often each number below n is there, int64 [n]; numbers below 0 are left out."""
    counts = np.zeros(n, dtype=np.int64)
    for start in range(0, len(numbers), ROWS_AT_ONCE):  # they become 8 bytes each to be counted
        part = numbers[start : start + ROWS_AT_ONCE]
        counts += np.bincount(part if part.min() >= 0 else part[part >= 0], minlength=n)
    return counts


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values at places, without a copy of all places in the type of an index."""
    found = np.empty(len(places), values.dtype)
    for start in range(0, len(places), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        found[part] = values[places[part]]
    return found


def dtype(kind: FeatureType) -> np.dtype:
    """Type of the values of a column."""
    return np.dtype({FeatureType.TOKEN: np.int32, FeatureType.FLOAT: np.float64}.get(kind, object))


def _numbered(texts: np.ndarray, known: dict[str, int]) -> np.ndarray:
    """Numbers of tokens; new ones get the next numbers."""
    places, distinct = pd.factorize(texts)
    numbers = [known.setdefault(token, len(known)) for token in distinct]
    return np.array([*numbers, -1], dtype=np.int32)[places]
