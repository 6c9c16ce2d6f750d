"""Tables in csv, tsv, jsonl (each also .gz) and parquet, row by row, whatever their columns are called."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import check_regular
from recbole_perpeft.core.lines import column_place, csv_columns, csv_rows, line_error, text_lines
from recbole_perpeft.data.files.json_lines import json_object

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
LARGEST_WHOLE = 2**53  # of those that floats tell from their neighbours
SHOWN = 80  # characters of a value in a message
_FRACTION = re.compile(r"[.,]([0-9]+)")
_ZONE = re.compile(r"([+-][0-9]{2}):?([0-9]{2})?$")
_DAY = len("2024-05-31")
_WHOLE_FLOAT = re.compile(r"-?[0-9]+\.0+")


def table_columns(path: Path) -> list[str]:
    """Names of the columns; of json lines the names in the first line.

    Raises:
        PerPEFTError: the file cannot be read, or its name does not tell its format.
    """
    kind = _kind(path)
    if kind == PARQUET:
        return _parquet(path).schema_arrow.names
    if kind in JSON_LINES:
        return list(next(_json_rows(path, False), (0, {}))[1])
    return next(csv_rows(path, DELIMITERS[kind]), (0, []))[1]


def table_rows(path: Path, columns: Sequence[str], show_progress: bool = False) -> Iterator[tuple[int, list[Any]]]:
    """Line (of parquet: row, from 1) and chosen cells of every row.

    Args:
        path: the file.
        columns: names of the columns to read; in json lines a name may be missing, which gives `None`.
        show_progress: show a bar.

    Raises:
        PerPEFTError: the file or a line is damaged, or a column is missing.
    """
    kind = _kind(path)
    if kind == PARQUET:
        return _parquet_rows(path, columns)
    if kind in JSON_LINES:
        return ((line, [row.get(name) for name in columns]) for line, row in _json_rows(path, show_progress))

    def places(header: list[str]) -> list[int]:
        return [column_place(path, header, name) for name in columns]

    return csv_columns(path, places, DELIMITERS[kind], show_progress)


def may_lack_columns(path: Path) -> bool:
    """Whether rows may leave columns out, so that a name that no row has is no error of the header."""
    return _kind(path) in JSON_LINES


def _kind(path: Path) -> str:
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    kind = suffixes[-1].lower() if suffixes else ""
    known = (*DELIMITERS, *JSON_LINES, PARQUET)
    if kind not in known or (kind == PARQUET and path.suffix == ".gz"):
        raise PerPEFTError(f"{path}: the suffix tells the format; use one of {', '.join(known)} (.gz after text)")
    return kind


def _json_rows(path: Path, show_progress: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines(path, show_progress):
        if not line.strip():
            continue
        yield number, json_object(path, number, line)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        check_regular(path)
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:  # names of columns may be no text
        raise PerPEFTError(f"{path}: not a parquet file that can be read ({_in_one_line(error)})") from error


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    with _parquet(path) as file:
        for name in columns:
            column_place(path, file.schema_arrow.names, name)
        row = 0
        try:
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                for cells in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    row += 1
                    yield row, list(cells)
        # Times out of the range of dates, and zones that nobody knows.
        except (OSError, ValueError, OverflowError, KeyError, pa.ArrowException) as error:
            raise PerPEFTError(f"{path}: damaged after row {row} ({_in_one_line(error)})") from error


def id_text(path: Path, line: int, value: Any) -> str:
    """An id as text: a text as it is, a whole number in digits.

    Raises:
        PerPEFTError: it is neither, or a whole number that was written as a float.
    """
    if isinstance(value, str):
        if value.endswith("0") and _WHOLE_FLOAT.fullmatch(value) and _kind(path) in DELIMITERS:
            raise _float_id(path, line, value)
        return encodable(path, line, value, "id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        raise _float_id(path, line, str(value))
    raise line_error(path, line, f"{value!r} cannot be an id; ids are texts or whole numbers")


def _float_id(path: Path, line: int, value: str) -> PerPEFTError:
    return line_error(
        path,
        line,
        f"the id {value} is a whole number written as a float, as pandas does where a column has gaps; elsewhere it "
        "would be another id: write the column as whole numbers (in pandas astype('Int64')) or as texts",
    )


def text_of(path: Path, line: int, value: Any, column: str) -> str:
    """A cell of a column of texts: a text as it is, a number in digits, texts and numbers of a list side by side.

    What is null or no number (NaN) is empty.

    Raises:
        PerPEFTError: it holds something that has no text, such as an object or a truth value.
    """
    values = value if isinstance(value, list) else [value]
    texts = [_plain_text(path, each) for each in values]
    if None in texts:
        described = repr(value) if len(repr(value)) <= SHOWN else repr(value)[:SHOWN] + "..."
        raise line_error(
            path, line, f"{column} is {described}; write it as a text, a number or a list of these, or leave it out"
        )
    return " ".join(text for text in texts if text)


def _plain_text(path: Path, value: Any) -> str | None:
    """The text of one value; None if it has none."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        # In parquet a column of whole numbers with gaps may have become one of floats.
        is_whole = value.is_integer() and abs(value) < LARGEST_WHOLE and path.suffix.lower() == PARQUET
        return None if math.isinf(value) else str(int(value) if is_whole else value)
    is_plain = isinstance(value, (int, Decimal, date)) and not isinstance(value, bool)
    return str(value) if is_plain else None


def encodable(path: Path, line: int, text: str, what: str) -> str:
    """A text that can be written as UTF-8.

    Args:
        path: for messages.
        line: for messages.
        text: the text.
        what: what it is, for messages.

    Raises:
        PerPEFTError: it holds half of a surrogate pair.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise line_error(path, line, f"the {what} {text!r} is not Unicode; rename it") from error
    return text


def number(path: Path, line: int, value: Any, what: str) -> float:
    """A finite number, given as such or as text.

    Raises:
        PerPEFTError: it is none.
    """
    found = _number(value)
    if found is None:
        raise line_error(path, line, f"the {what} {value!r} is not a finite number")
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or isinstance(value, str) and "_" in value:  # Python reads 1_000
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


class TimeColumn:
    """Times of a file: all of them numbers, as they are, or all of them dates in ISO 8601.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: tuple[int, bool] | None = None

    def seconds(self, line: int, value: Any) -> float:
        """A time: a number, or seconds since 1970 of a date, in UTC unless it names its zone.

        Raises:
            PerPEFTError: it is neither, or other than the time of the first row.
        """
        time = _number(value)
        is_number = time is not None
        first_line, were_numbers = self._first = self._first or (line, is_number)
        if time is None:
            time = _seconds_of_date(value)
        if time is None:
            raise line_error(
                self._path,
                line,
                f"the time {value!r} is neither a finite number nor a date such as 2024-05-31T18:00:00Z",
            )
        if is_number != were_numbers:
            kinds = ("a date", "a number")
            raise line_error(
                self._path,
                line,
                f"the time {value!r} is {kinds[is_number]}, that of line {first_line} is {kinds[were_numbers]}; write "
                "all of them alike",
            )
        return time


def _seconds_of_date(value: Any) -> float | None:
    """Seconds since 1970; None for what is no date."""
    try:
        if not isinstance(value, datetime):
            value = datetime.fromisoformat(_as_python_has_it(value if isinstance(value, str) else value.isoformat()))
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    except (AttributeError, ValueError, OverflowError):
        return None


def _as_python_has_it(text: str) -> str:
    """A date with six digits of a second and a zone with a colon, as Python 3.10 wants them."""
    day, time = text.strip()[:_DAY], text.strip()[_DAY:].replace("Z", "+00:00")
    time = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", time)
    return day + _ZONE.sub(lambda found: f"{found[1]}:{found[2] or '00'}", time)
