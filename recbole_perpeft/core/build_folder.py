"""Folders that are built over minutes or hours by one process, survive a kill, and appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_perpeft.core.errors import PerPEFTError


@contextmanager
def built_alone(folder: Path) -> Iterator[None]:
    """Be the only process that builds this folder. The lock goes with its process, however that ends.

    Raises:
        PerPEFTError: the folder cannot be written.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        getLogger().info(f"{folder}: another process builds this cache; waiting for it.")
        lock.acquire()
    except OSError as error:
        raise PerPEFTError(
            f"{folder.parent}: cannot be written ({error.strerror}); name another folder as cache_folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def put_in_place(draft: Path, folder: Path) -> None:
    """Give a complete folder its final name. Processes that have mapped files of the earlier one keep them.

    Raises:
        OSError: the disk does not take it.
    """
    if folder.exists():
        outdated = folder.with_name(f"{folder.name}.outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    draft.rename(folder)
    if os.name == "posix":  # other platforms do not let folders be opened
        descriptor = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Journal:
    """A file of one JSON object a line: a header that says what is built, then what is finished.

    Args:
        file: where it lies.
    """

    def __init__(self, file: Path):
        self.file = file

    def start(self, header: dict[str, Any]) -> None:
        self._write([header])

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries; a kill loses at most the last of them."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def resume(self, header: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The entries of an earlier process with the same header; `None` if there was none."""
        lines = self._whole_lines()
        if not lines or lines[0] != json.loads(json.dumps(header)):
            return None
        self._write(lines)  # a line that the kill cut off must not swallow the next one
        return lines[1:]

    def _write(self, lines: list[dict[str, Any]]) -> None:
        with open(self.file, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _whole_lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            text = self.file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return lines
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines
