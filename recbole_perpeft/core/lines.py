"""Reading large text files as a stream: in blocks of whole lines, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import open_regular

BLOCK_BYTES = 16 * 2**20
MAX_LINE_BYTES = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def line_error(path: Path, line: int, problem: str) -> PerPEFTError:
    """The error of one line of a file."""
    return PerPEFTError(f"{path}, line {line}: {problem}")


def find_file(folder: Path, pattern: str, what: str) -> Path:
    """The only file of a folder that fits a pattern.

    Args:
        folder: where to look.
        pattern: as for `Path.glob`.
        what: what it holds, for the message.

    Raises:
        PerPEFTError: there is none, or several.
    """
    if not folder.is_dir():
        raise PerPEFTError(f"{folder} is not a folder; name the one that holds {what} ({pattern})")
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise PerPEFTError(f"{folder}: one file {pattern} with {what} is needed, found: {names}")


def line_blocks(
    path: Path, show_progress: bool = False, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, plain or gzip (`.gz`), without ever holding more than a block and a line of it.

    Args:
        path: the file.
        show_progress: show a bar over its bytes.
        block_bytes: size of a block, before the line that crosses its end.

    Yields:
        Number of the first line, from 1, and whole lines; the last may lack its line feed.

    Raises:
        PerPEFTError: the file cannot be read, is cut off, or has a line of more than 64 MiB.
    """
    first_line, rest, decompressed = 1, b"", None
    try:
        with _opened(path, show_progress) as decompressed:
            while block := decompressed.read(block_bytes):
                if first_line == 1 and not rest:
                    block = block.removeprefix(BYTE_ORDER_MARK)
                end = block.rfind(b"\n") + 1
                if not end:
                    rest += block
                    _check_length(path, first_line, rest)
                    continue
                lines, rest = rest + block[:end], block[end:]
                yield first_line, lines
                first_line += lines.count(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise line_error(path, first_line, f"cannot be read from here on ({reason}); get the file again") from error
    if rest:
        yield first_line, rest


def _check_length(path: Path, line: int, content: bytes) -> None:
    if len(content) > MAX_LINE_BYTES:
        raise line_error(path, line, f"longer than {MAX_LINE_BYTES:,} bytes; is this a text file?")


@contextmanager
def _opened(path: Path, show_progress: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    with (
        open_regular(path) as raw,
        tqdm.wrapattr(
            raw, "read", total=path.stat().st_size, desc=path.name, disable=not show_progress, dynamic_ncols=True
        ) as counted,
    ):
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=counted, mode="rb") as decompressed:
                yield decompressed
        else:
            yield counted


def text_lines(path: Path, show_progress: bool = False) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line, with its line feed where it has one.

    Raises:
        PerPEFTError: as `line_blocks`, or a line is not UTF-8.
    """
    for first_line, block in line_blocks(path, show_progress):
        for number, line in enumerate(_split(block), start=first_line):
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise line_error(path, number, f"not UTF-8 at byte {error.start + 1}; save it as UTF-8") from error


def _split(block: bytes) -> Iterable[bytes]:
    # `bytes.splitlines` would also split at carriage returns.
    lines = block.split(b"\n")
    last = lines.pop()
    lines = [line + b"\n" for line in lines]
    return [*lines, last] if last else lines


def csv_rows(path: Path, delimiter: str = ",", show_progress: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line on which a row ends, and its cells; quoted cells may hold delimiters, doubled quotes and line feeds.

    Raises:
        PerPEFTError: as `text_lines`, or quoting is broken.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process; a cell may be as long as a line
    rows = csv.reader((line for _, line in text_lines(path, show_progress)), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise line_error(path, max(rows.line_num, 1), f"not a row of a table ({error})") from error
        if row:
            yield rows.line_num, row


def csv_columns(
    path: Path, choose: Callable[[list[str]], list[int]], delimiter: str = ",", show_progress: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Line and chosen cells of every row below the header.

    Args:
        path: a table with a header.
        choose: gives the places of the columns for the names in the header.
        delimiter: between cells.
        show_progress: show a bar over its bytes.

    Raises:
        PerPEFTError: as `csv_rows`, or the file is empty, or a row has more or fewer cells than the header.
    """
    rows = csv_rows(path, delimiter, show_progress)
    _, header = next(rows, (0, None))
    if header is None:
        raise PerPEFTError(f"{path} is empty")
    places = choose(header)
    for line, row in rows:
        if len(row) != len(header):
            raise line_error(path, line, f"{len(row)} cells instead of {len(header)} as in the header")
        yield line, [row[place] for place in places]


def column_place(path: Path, header: list[str], name: str) -> int:
    """Place of a column.

    Raises:
        PerPEFTError: there is no such column, or two.
    """
    if header.count(name) == 1:
        return header.index(name)
    how_many = "no column" if name not in header else "two columns"
    raise line_error(path, 1, f"{how_many} {name!r} among {', '.join(header)}")
