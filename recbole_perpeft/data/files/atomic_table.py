"""An atomic file as a table: one row for each of its data lines, or an error that names the line."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import line_error

UTF_8 = "utf-8"
# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_TYPES = tuple(feature_type.value for feature_type in FeatureType)
_UNIT_SEPARATOR = b"\x1f"  # stands for separators of several bytes, which the quick reader does not know


class AtomicTable(NamedTuple):
    """Rows of an atomic file.

    Attributes:
        types: the columns that were read, in the order of the header.
        rows: the same columns, texts or float64.
        lines: number of the line of each row, from 1: int64 [n].
    """

    types: dict[str, FeatureType]
    rows: pd.DataFrame
    lines: np.ndarray


def read_header(path: Path, separator: str, encoding: str | None = None) -> dict[str, FeatureType]:
    """Names and types in the header line `name:type<tab>name:type ...`.

    Args:
        path: the file.
        separator: between cells.
        encoding: of the file; UTF-8 by default.

    Raises:
        PerPEFTError: the file cannot be read, or its first line is no such header.
    """
    return _header_types(path, _content(path, encoding).partition(b"\n")[0].decode(), separator)


def read_table(path: Path, chosen: Callable[[str], bool], separator: str, encoding: str | None = None) -> AtomicTable:
    """Some columns of a file.

    Nothing is quoted: a quotation mark is a character as any other. Empty lines are no rows.

    Args:
        path: the file.
        chosen: whether a column is read, by its name.
        separator: between cells.
        encoding: of the file; UTF-8 by default.

    Returns:
        The table; cells of the type `float` are numbers, all others texts. Empty cells, and those with a word of
        pandas for missing values such as `NA`, are NaN.

    Raises:
        PerPEFTError: the file cannot be read, a row has other cells than the header has columns, or a number is none.
    """
    content = _content(path, encoding)
    columns = _header_types(path, content.partition(b"\n")[0].decode(), separator)
    lines = _data_lines(path, content, separator.encode(), len(columns))
    if b"\n\n" in content:  # left out here: the reader would leave out lines of blanks too
        content = b"\n".join(filter(None, content.split(b"\n")))
    if len(separator.encode()) > 1:
        content, separator = content.replace(separator.encode(), _UNIT_SEPARATOR), _UNIT_SEPARATOR.decode()
    types = {name: feature_type for name, feature_type in columns.items() if chosen(name)}
    dtypes = {name: np.float64 if kind == FeatureType.FLOAT else str for name, kind in types.items()}
    try:
        rows = _parse(content, list(columns), dtypes, separator)
    except (ValueError, OverflowError) as error:
        numbers = [name for name, dtype in dtypes.items() if dtype is not str]
        texts = _parse(content, list(columns), dict.fromkeys(numbers, str), separator)
        raise _bad_number(path, texts, lines) or PerPEFTError(f"cannot read {path}: {error}") from error
    if len(rows) != len(lines) and types:
        raise PerPEFTError(
            f"{path} has {len(lines)} rows, but {len(rows)} were read; save it anew as plain UTF-8 text"
        )
    return AtomicTable(types, rows, lines)


def numbers_in(path: Path, name: str, cells: Iterable[Sequence[str]], lines: np.ndarray) -> list[np.ndarray]:
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
        header=0,
        names=columns,
        usecols=list(dtypes),
        dtype=dtypes,
        quoting=csv.QUOTE_NONE,
        skip_blank_lines=False,
        float_precision="round_trip",
        lineterminator="\n",
        encoding=UTF_8,
    )


def _content(path: Path, encoding: str | None) -> bytes:
    """The file in UTF-8 without a byte order mark, with lines that end in a line feed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        if codecs.lookup(encoding or UTF_8).name == UTF_8:
            content = _checked_utf_8(path, content)
        else:
            content = content.decode(encoding or UTF_8).removeprefix("\ufeff").encode()
    except LookupError as error:
        raise PerPEFTError(f"cannot read {path}: {error}; leave out encoding for UTF-8") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise line_error(
            path, line, f"not {encoding}, which the setting encoding says it is ({error.reason})"
        ) from error
    _check_no_zero_byte(path, content)
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in content else content


def _checked_utf_8(path: Path, content: bytes) -> bytes:
    """The content without its mark, if it is UTF-8."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is not None:
        raise PerPEFTError(f"{path} is {encoding.upper()}, not UTF-8; {_how_to_convert(path, encoding)}")
    content = content.removeprefix(codecs.BOM_UTF8)
    # Latin letters in UTF-16 without a mark are valid UTF-8 with a zero byte a letter.
    _check_no_zero_byte(path, content)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        start = content.rfind(b"\n", 0, error.start) + 1
        byte = f"not UTF-8 at byte {error.start - start + 1} (0x{content[error.start]:02x})"
        remedy = f"if it is in another encoding such as cp1252, {_how_to_convert(path, 'cp1252')}"
        raise line_error(path, content.count(b"\n", 0, start) + 1, f"{byte}; {remedy}") from error
    return content


def _check_no_zero_byte(path: Path, content: bytes) -> None:
    place = content.find(b"\0")
    if place >= 0:
        line = content.count(b"\n", 0, place) + 1
        remedy = _how_to_convert(path, "utf-16le")
        raise line_error(path, line, f"a zero byte: it is damaged, or UTF-16 without a mark; then {remedy}")


def _how_to_convert(path: Path, encoding: str) -> str:
    return (
        f"convert it (iconv -f {encoding.upper()} -t UTF-8 {path.name} > converted, or save it as UTF-8 in the "
        f"program that wrote it), or set --encoding={encoding}"
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


def _data_lines(path: Path, content: bytes, separator: bytes, n_columns: int) -> np.ndarray:
    """Numbers of the lines that hold rows, int64 [n]."""
    reader = io.BytesIO(content)
    reader.readline()
    # -1 marks an empty line.
    n_separators = np.fromiter((-1 if line == b"\n" else line.count(separator) for line in reader), dtype=np.int64)
    lines = np.flatnonzero(n_separators >= 0) + 2
    wrong = np.flatnonzero(n_separators[lines - 2] != n_columns - 1)
    if len(wrong):
        line = int(lines[wrong[0]])
        more = f" ({len(wrong)} such lines)" if len(wrong) > 1 else ""
        raise line_error(
            path,
            line,
            f"{n_separators[line - 2] + 1} cell(s) instead of {n_columns} as in line 1{more}; cells are separated by "
            f"{separator.decode()!r} and hold neither that nor a line break",
        )
    return lines


def _bad_number(path: Path, texts: pd.DataFrame, lines: np.ndarray) -> PerPEFTError | None:
    """An error about the first cell that is no number; None if there is none."""
    wrong = texts.apply(lambda column: pd.to_numeric(column, errors="coerce").isna() & column.notna())
    rows = np.flatnonzero(wrong.any(axis=1))
    if not len(rows):
        return None
    row = rows[0]
    name = wrong.columns[wrong.iloc[row].argmax()]
    problem = f"{texts[name][row]!r} in the column {name} is not a number"
    return line_error(path, int(lines[row]), f"{problem} ({len(rows)} such lines)" if len(rows) > 1 else problem)
