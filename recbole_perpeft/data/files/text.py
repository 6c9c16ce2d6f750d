"""The text of a file in pieces of whole lines, as UTF-8, whatever its encoding and its line ends."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import open_regular
from recbole_perpeft.core.lines import line_error

UTF_8 = "utf-8"
PIECE_BYTES = 16 * 2**20
# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_pieces(path: Path, encoding: str | None = None, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Whole lines in UTF-8 without a byte order mark, which end in a line feed; the last may lack it.

    Args:
        path: the file.
        encoding: of the file; UTF-8 by default.
        piece_bytes: about how much of the file is held at a time.

    Raises:
        PerPEFTError: the file cannot be read, is not of this encoding, or has a zero byte.
    """
    try:
        is_utf_8 = codecs.lookup(encoding or UTF_8).name == UTF_8
        blocks = _blocks(path, piece_bytes)
        pieces = _whole_lines(blocks if is_utf_8 else _decoded(path, blocks, encoding or UTF_8))
    except LookupError as error:
        raise PerPEFTError(f"cannot read {path}: {error}; leave out encoding for UTF-8") from error
    n_lines = 0
    for place, piece in enumerate(pieces):
        if is_utf_8:
            if not place:
                piece = _without_mark(path, piece)
            _check_no_zero_byte(path, piece, n_lines)
            _check_utf_8(path, piece, n_lines)
        else:
            piece = piece if place else piece.removeprefix(codecs.BOM_UTF8)
            _check_no_zero_byte(path, piece, n_lines)
        n_lines += piece.count(b"\n")
        yield piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in piece else piece


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while block := file.read(size):
                yield block
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror or error}") from error


def _decoded(path: Path, blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder, n_lines = codecs.getincrementaldecoder(encoding)(), 0
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
            n_lines += block.count(b"\n")
        yield decoder.decode(b"", True).encode()
    except UnicodeDecodeError as error:
        line = n_lines + error.object.count(b"\n", 0, error.start) + 1
        raise line_error(
            path, line, f"not {encoding}, which the setting encoding says it is ({error.reason})"
        ) from error


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for block in blocks:
        # A carriage return at the end may be the first half of a line end.
        end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, -1)) + 1
        if end:
            yield b"".join([*rest, block[:end]])
            rest = []
        rest.append(block[end:])
    if any(rest):
        yield b"".join(rest)


def _without_mark(path: Path, content: bytes) -> bytes:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is not None:
        raise PerPEFTError(f"{path} is {encoding.upper()}, not UTF-8; {_how_to_convert(path, encoding)}")
    return content.removeprefix(codecs.BOM_UTF8)


def _check_utf_8(path: Path, content: bytes, n_before: int) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        start = content.rfind(b"\n", 0, error.start) + 1
        byte = f"not UTF-8 at byte {error.start - start + 1} (0x{content[error.start]:02x})"
        remedy = f"if it is in another encoding such as cp1252, {_how_to_convert(path, 'cp1252')}"
        raise line_error(path, n_before + content.count(b"\n", 0, start) + 1, f"{byte}; {remedy}") from error


def _check_no_zero_byte(path: Path, content: bytes, n_before: int) -> None:
    # Latin letters in UTF-16 without a mark are valid UTF-8 with a zero byte a letter.
    place = content.find(b"\0")
    if place >= 0:
        line = n_before + content.count(b"\n", 0, place) + 1
        remedy = _how_to_convert(path, "utf-16le")
        raise line_error(path, line, f"a zero byte: it is damaged, or UTF-16 without a mark; then {remedy}")


def _how_to_convert(path: Path, encoding: str) -> str:
    return (
        f"convert it (iconv -f {encoding.upper()} -t UTF-8 {path.name} > converted, or save it as UTF-8 in the "
        f"program that wrote it), or set --encoding={encoding}"
    )
