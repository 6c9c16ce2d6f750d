"""Fast reading of large json lines: Arrow parses whole blocks, on several cores; Python explains what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as paj

from recbole_perpeft.core.lines import line_blocks, line_error

PARSED_BYTES = 2**20


def json_tables(path: Path, schema: pa.Schema, show_progress: bool = False) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Some fields of the objects of a file of json lines, in tables of many rows.

    Args:
        path: the file, plain or `.gz`.
        schema: fields to read; others are ignored, a field that an object lacks is null.
        show_progress: show a bar.

    Yields:
        Line of every row, int64 [n], and the table [n].

    Raises:
        PerPEFTError: as `line_blocks`, or a line is not JSON or has a value of another type.
    """
    for first_line, block in line_blocks(path, show_progress):
        table = _parsed(block, schema)
        # A blank line, or two objects in a line, have Arrow count other rows than lines.
        if table is not None and len(table) == block.count(b"\n") + (not block.endswith(b"\n")):
            yield np.arange(first_line, first_line + len(table)), table
        else:
            yield _parsed_slowly(path, first_line, block, schema)


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        PerPEFTError: the line holds something else.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise line_error(path, number, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise line_error(path, number, "not a JSON object {...}")
    return value


def _parsed(block: bytes, schema: pa.Schema) -> pa.Table | None:
    try:
        table = paj.read_json(
            pa.BufferReader(block),
            paj.ReadOptions(block_size=PARSED_BYTES),
            paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # reading lets bytes pass that are not UTF-8
    except pa.ArrowInvalid:
        return None
    return table


def _parsed_slowly(path: Path, first_line: int, block: bytes, schema: pa.Schema) -> tuple[np.ndarray, pa.Table]:
    lines, rows = [], []
    for line, content in enumerate(block.split(b"\n"), start=first_line):
        if not content.strip():
            continue
        try:
            row = json_object(path, line, content.decode())
        except UnicodeDecodeError as error:
            raise line_error(path, line, f"not UTF-8 at byte {error.start + 1}") from error
        rows.append({field.name: _value(path, line, row.get(field.name), field) for field in schema})
        lines.append(line)
    return np.array(lines, dtype=np.int64), pa.Table.from_pylist(rows, schema)


def _value(path: Path, line: int, value: Any, field: pa.Field) -> Any:
    """A value that fits its field; halves of surrogate pairs, which JSON may hold, become replacement characters."""
    if isinstance(value, str) and not value.isascii():
        value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if value is not None and pa.types.is_string(field.type) and not isinstance(value, str):
        raise line_error(path, line, f"{field.name} is {json.dumps(value)[:80]}, not a text")
    try:
        pa.scalar(value, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise line_error(path, line, f"{field.name} is {json.dumps(value)[:80]}, not {field.type}") from error
    return value
