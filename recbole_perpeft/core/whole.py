"""Files, folders and journals that appear whole or not at all, and the lock of what one process makes at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular, unlinked
from recbole_perpeft.core.logs import LOGGER

_LONGEST_SIGNATURE = 300  # bytes of a lock that are read
_CHECKSUM = "crc32"  # the last entry of a line of a journal


def draft_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name.

    It is named after that alone: what a killed process leaves is continued or overwritten by the next.
    """
    return path.with_name(f".{path.name}.draft")


def write_synced(path: Path, *contents: Any) -> None:
    """Write bytes, or buffers of them, one after the other, and wait until they are on the disk."""
    with open(path, "wb") as file:
        file.writelines(contents)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Explain what the disk refuses while `path` is made.

    Raises:
        PerPEFTError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        # Of a copy the second is what is written.
        place = str(error.filename2 or error.filename or path).replace(str(draft_of(path)), str(path))
        raise PerPEFTError(
            f"cannot write {place}: {error.strerror or error}; free space or choose another folder"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether the disk has no space left, or none for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Name the folder that is written to where a library tells of a full disk and not of the file.

    Raises:
        PerPEFTError: in place of an `OSError` of a full disk.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        with disk_errors(folder):
            raise


@contextmanager
def alone(path: Path, patience: float = -1, file: Path | None = None) -> Iterator[None]:
    """Be the only process that makes this file or folder. The lock goes with its process, however that ends.

    Args:
        path: what is made.
        patience: seconds to wait for another process; endlessly if negative.
        file: the lock, by default beside `path`. Its folder is made where it is missing.

    Raises:
        PerPEFTError: another process, which the message names, is making it still, or the disk does not take the lock.
    """
    if file is None:
        file = path.absolute().with_name(f"{path.absolute().name}.lock")  # `.` has no name
    lock = FileLock(file)
    with disk_errors(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if patience:
                LOGGER.info(f"{path} is being written by {_holder(file)}; waiting for it")
            try:
                lock.acquire(timeout=patience)
            except Timeout as error:
                raise PerPEFTError(f"{path} is being written by {_holder(file)}; wait for it") from error
        _sign(file)
    try:
        yield
    finally:
        if not patience:  # nobody waits for this file
            file.unlink(missing_ok=True)
        lock.release()


def _sign(lock: Path) -> None:
    """Write into a lock of ours who holds it. A disk that refuses that has given the lock all the same."""
    with suppress(OSError):
        descriptor = os.open(lock, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()} {socket.gethostname()}")


def _holder(lock: Path) -> str:
    """Who holds a lock of another process, in words."""
    try:
        number, _, machine = lock.read_bytes()[:_LONGEST_SIGNATURE].decode("ascii").partition(" ")
    except (OSError, UnicodeDecodeError):
        return "another process"
    if not number.isdigit():
        return "another process"
    return f"process {number}" + (f" of {machine}" if machine not in ("", socket.gethostname()) else "")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path of an empty draft to write to, which becomes `path` when the block ends without an error.

    Args:
        path: where the file belongs. Only one process may write it.

    Raises:
        PerPEFTError: the disk does not take it; nothing is left behind, an earlier file stays.
    """
    with disk_errors(path), _draft_file(path) as draft:
        yield draft


@contextmanager
def _draft_file(path: Path) -> Iterator[Path]:
    draft = draft_of(path)
    try:
        draft.unlink(missing_ok=True)
        draft.touch(exist_ok=False)  # a file of ours: what others put there, a link say, is never written to
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path, kept: str | None = None) -> None:
    """Empty a folder, or make it where it is missing.

    Args:
        folder: a link in its place is removed, not followed.
        kept: name of a folder in it that stays.

    Raises:
        OSError: the disk does not take it.
    """
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name != kept or path.is_symlink():
            remove(path)


def put_in_place(draft: Path, folder: Path) -> None:
    """Give a complete folder its final name. Processes that have mapped files of the earlier one keep them.

    Raises:
        OSError: the disk does not take it; the earlier folder stays.
    """
    earlier = folder.with_name(f".{folder.name}.old")
    remove(earlier)
    if folder.exists():
        folder.rename(earlier)
    try:
        draft.rename(folder)
    except OSError:
        if earlier.exists():
            earlier.rename(folder)
        raise
    remove(earlier)
    if os.name == "posix":  # other platforms do not let folders be opened
        descriptor = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Journal:
    """A file of one JSON object a line: a header that says what is made, then what is finished.

    Every line has a checksum; a line that was cut off or changed, and what follows it, is not believed.

    Args:
        file: where it lies.
    """

    def __init__(self, file: Path):
        self.file = file

    def start(self, header: dict[str, Any], entries: Iterable[dict[str, Any]] = ()) -> None:
        """Replace what is there by a header and entries, whole or not at all.

        Raises:
            OSError: the disk does not take it.
        """
        with _draft_file(self.file) as draft:
            draft.write_text(_lines([header, *entries]), encoding="utf-8")

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries; a kill loses at most the last of them.

        Raises:
            OSError: the disk does not take them.
        """
        with open(self.file, "a", encoding="utf-8", opener=unlinked) as file:
            file.write(_lines(entries))

    def resume(self, header: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The entries of an earlier process with the same header; `None` if there was none."""
        lines = self._whole_lines()
        if not lines or lines[0] != json.loads(json.dumps(header)):
            return None
        self.start(header, lines[1:])  # a line that the kill cut off must not swallow the next one
        return lines[1:]

    def _whole_lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            text = read_regular(self.file).decode(errors="replace")
        except FileNotFoundError:
            return lines
        for line in text.splitlines():
            try:
                *entry, found = json.loads(line).items()
            except (ValueError, AttributeError, RecursionError):  # no JSON, no object, or an empty one
                break
            if found != (_CHECKSUM, _checksum(dict(entry))):
                break
            lines.append(dict(entry))
        return lines


def _lines(entries: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry | {_CHECKSUM: _checksum(entry)}) + "\n" for entry in entries)


def _checksum(entry: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())
