"""A log as numbers: 4 bytes for a user, an item or another token, 8 for a number, and each token once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_perpeft.data.files.atomic_table import AtomicTable, RowLines, TableReader


class CodedLog(NamedTuple):
    """The columns of an atomic file.

    Attributes:
        types: by name of the column.
        columns: of tokens int32 [n], their numbers in the order in which they appear first, -1 where a cell is empty;
            of numbers float64 [n]; of sequences texts.
        tokens: by name of a column of tokens, the tokens by their numbers.
        lines: numbers of the lines of the rows.
    """

    types: dict[str, FeatureType]
    columns: dict[str, np.ndarray]
    tokens: dict[str, list[str]]
    lines: RowLines

    def table(self) -> AtomicTable:
        """The same as a table, with columns of tokens as categories; numbers are not copied."""
        columns = {
            name: pd.Categorical.from_codes(
                values, dtype=pd.CategoricalDtype(pd.Index(self.tokens[name], dtype=object)), validate=False
            )
            if name in self.tokens
            else values
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


def dtype(kind: FeatureType) -> np.dtype:
    """Type of the values of a column."""
    return np.dtype({FeatureType.TOKEN: np.int32, FeatureType.FLOAT: np.float64}.get(kind, object))


def _numbered(texts: np.ndarray, known: dict[str, int]) -> np.ndarray:
    """Numbers of tokens; new ones get the next numbers."""
    places, distinct = pd.factorize(texts)
    numbers = [known.setdefault(token, len(known)) for token in distinct]
    return np.array([*numbers, -1], dtype=np.int32)[places]
