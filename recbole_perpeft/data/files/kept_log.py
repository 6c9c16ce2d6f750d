"""A log as numbers, kept in a folder and mapped from there, so that its text is read once.

The text stays what counts. A folder is believed where its text has the size and time of change that were noted, or
else the same content, and where every array has its checksum; anything else is made again.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from recbole.utils import FeatureType

from recbole_perpeft.core.digest import checksum, large_file_hash, value_hash
from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.files import read_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.schema import misfit
from recbole_perpeft.core.whole import alone, clear, draft_of, put_in_place, remove, write_synced, written_whole
from recbole_perpeft.data.files.atomic_table import RowLines, TableReader
from recbole_perpeft.data.files.beside import Beside, mapped
from recbole_perpeft.data.files.coded_log import CodedLog, add_pieces, dtype

FORMAT = "log 1"
MANIFEST, _EMPTY, _TOKENS = "manifest.json", "empty_lines", ".tokens"
_SCHEMA = {
    "format": str,
    "text": str,
    "stamp": list[int],
    "types": dict[str, str],
    "arrays": dict[str, list[int]],
    "n_rows": int,
}
_KINDS = (FeatureType.TOKEN, FeatureType.FLOAT)


class _UnusableError(Exception):
    """What is in the folder is not this log."""


def folder_of(cache_folder: Path, path: Path, reader: TableReader, about: Any) -> Path:
    """Where the columns of a log are kept.

    Args:
        cache_folder: of the run.
        path: the text.
        reader: of the text.
        about: how it is read otherwise, as JSON holds it.
    """
    types = {name: kind.value for name, kind in reader.types.items()}
    key = value_hash([FORMAT, str(path.absolute()), list(types.items()), about])
    return cache_folder / f"log-{path.stem}-{key}"


def kept_log(folder: Path, path: Path, reader: TableReader) -> CodedLog | None:
    """The log of a folder, which is made first where it is missing, damaged, or of another text.

    Processes that want the same log wait for the one that makes it; of one that is killed nothing is believed.

    Args:
        folder: where it is kept.
        path: the text.
        reader: of the text, from its beginning.

    Returns:
        The log, mapped; None where it has columns that cannot be kept, or the disk does not take them.

    Raises:
        PerPEFTError: of the text, as `TableReader`; or it is changed while it is read.
    """
    if not reader.types or not set(reader.types.values()) <= set(_KINDS):
        return None
    with suppress(_UnusableError):
        return _opened(folder, path, reader)
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder))
        except PerPEFTError as error:
            _tell(error)
            return None
        try:
            return _opened(folder, path, reader)
        except _UnusableError as problem:
            LOGGER.info(f"reading {path} once, to keep it in {folder} ({problem})")
        draft = draft_of(folder)
        try:
            clear(draft)
            _write(draft, path, reader)
            put_in_place(draft, folder)
            return _opened(folder, path, reader)
        except (OSError, _UnusableError) as error:
            _tell(error)
            return None
        finally:
            remove(draft)


def _tell(error: Exception) -> None:
    LOGGER.warning(f"the log is not kept, and its text read by every run (keep_log): {one_line(error)}")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _write(draft: Path, path: Path, reader: TableReader) -> None:
    stamp, text = _stamp(path), large_file_hash(path)
    sums: dict[str, int] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}

        def add(name: str, values: np.ndarray) -> None:
            files[name].write(np.ascontiguousarray(values).data)
            sums[name] = checksum([values], sums[name])

        for name in reader.types:
            files[name] = stack.enter_context(open(draft / _file_name(name, reader), "wb"))
            sums[name] = 0
        tokens = add_pieces(reader, add)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    if _stamp(path) != stamp:
        raise PerPEFTError(f"{path} was changed while it was read; run again")
    lines = reader.lines
    arrays = {name: [len(lines), value] for name, value in sums.items()}
    besides = {
        **{_file_name(name, reader) + _TOKENS: "\n".join(known).encode() for name, known in tokens.items()},
        _EMPTY: lines.empty.tobytes(),
    }
    arrays |= {name: [len(content), checksum([np.frombuffer(content, np.uint8)])] for name, content in besides.items()}
    types = {name: kind.value for name, kind in reader.types.items()}
    described = {
        "format": FORMAT,
        "text": text,
        "stamp": stamp,
        "types": types,
        "arrays": arrays,
        "n_rows": len(lines),
    }
    for name, content in (besides | {MANIFEST: json.dumps(described).encode()}).items():
        write_synced(draft / name, content)


def _file_name(name: str, reader: TableReader) -> str:
    """Names of columns need not be names of files."""
    return f"column_{list(reader.types).index(name)}"


def _opened(folder: Path, path: Path, reader: TableReader) -> CodedLog:
    try:
        return _checked(folder, path, reader)
    except FileNotFoundError as error:
        raise _UnusableError("nothing is kept yet" if not folder.exists() else "a file of it is missing") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _UnusableError(f"what is kept is damaged: {one_line(error)}") from error


def _checked(folder: Path, path: Path, reader: TableReader) -> CodedLog:
    found = json.loads(read_regular(folder / MANIFEST))
    if not isinstance(found, dict) or found.get("format") != FORMAT or misfit(found, _SCHEMA):
        raise ValueError("no manifest of a log")
    if found["types"] != {name: kind.value for name, kind in reader.types.items()}:
        raise _UnusableError("other columns are kept")
    stamp = _stamp(path)
    if stamp != found["stamp"]:
        if stamp[0] != found["stamp"][0] or large_file_hash(path) != found["text"]:
            raise _UnusableError("the text has changed")
        with suppress(PerPEFTError), written_whole(folder / MANIFEST) as draft:
            draft.write_text(json.dumps(found | {"stamp": stamp}), encoding="utf-8")

    def checked(name: str, file: str, kind: Any) -> np.ndarray:
        n, wanted = found["arrays"][name]
        with open(folder / file, "rb") as opened:
            values = mapped(opened, np.dtype(kind), n)
        if checksum([values]) != wanted:
            raise ValueError(f"{file} was changed after it was written")
        return values

    def read(file: str) -> bytes:
        return checked(file, file, np.uint8).tobytes()

    columns, tokens = {}, {}
    for name, kind in reader.types.items():
        file = _file_name(name, reader)
        columns[name] = checked(name, file, dtype(kind))
        if len(columns[name]) != found["n_rows"]:
            raise ValueError(f"{file} has other rows")
        if kind == FeatureType.TOKEN:
            text = read(file + _TOKENS).decode()
            tokens[name] = text.split("\n") if text else []
    lines = RowLines(found["n_rows"], np.frombuffer(read(_EMPTY), np.int64))
    return CodedLog(reader.types, columns, tokens, lines, Beside(folder, found["text"]))
