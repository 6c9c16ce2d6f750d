"""The log: one logger of this package, and where its lines go while a run or a search lasts."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import unlinked

LOGGER = logging.getLogger("recbole_perpeft")
SHORT_TIME = "%d %b %H:%M:%S"
_SECONDS_BETWEEN_LOOKS = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _PlainFormatter(logging.Formatter):
    """Without the colours that RecBole writes into its messages."""

    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", super().format(record))


def level_of(name: str | None) -> int:
    """The level that RecBole's setting `state` names.

    Raises:
        PerPEFTError: there is no such level.
    """
    level = logging.getLevelName(str(name or "INFO").upper())
    if not isinstance(level, int):
        raise PerPEFTError(f"state must be DEBUG, INFO, WARNING, ERROR or CRITICAL, not {name!r}")
    return level


class _OwnFile(logging.FileHandler):
    """A file that is no link to one of somebody else, and whose lines are given up where the disk takes no more."""

    _is_given_up = False

    def _open(self):
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=unlinked)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_given_up:
            self._is_given_up = True
            print(f"{self.baseFilename} cannot be written any more: {error.strerror or error}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written before
            super().close()


@contextmanager
def logged(
    file: Path, line: str, time: str | None = None, level: int = logging.INFO, ending: str | None = None
) -> Iterator[None]:
    """Send all that is logged, by RecBole too, to a file, and to the terminal unless the program logs already.

    Args:
        file: lines are appended to it.
        line: format of a line.
        time: format of the time in the file, by default to the millisecond; the terminal gets `SHORT_TIME`.
        level: what is less important is left out.
        ending: how the line begins that tells the file, and not the terminal, which error ended the block; without
            it none is told. A command prints the error itself.
    """
    root = logging.getLogger()
    written = _OwnFile(file, encoding="utf-8")
    written.setFormatter(_PlainFormatter(line, time))
    shown: list[logging.Handler] = [] if root.handlers else [logging.StreamHandler(sys.stderr)]
    for handler in shown:
        handler.setFormatter((logging.Formatter if sys.stderr.isatty() else _PlainFormatter)(line, SHORT_TIME))
    level_before = root.level
    root.setLevel(level)
    for handler in (written, *shown):
        root.addHandler(handler)
    try:
        yield
    except Exception as error:
        for handler in shown:
            root.removeHandler(handler)
        if ending is not None:
            LOGGER.error("%s: %s", ending, error)
            LOGGER.debug("where it happened", exc_info=True)
        raise
    finally:
        root.setLevel(level_before)
        for handler in (written, *shown):
            root.removeHandler(handler)
            handler.close()


@contextmanager
def followed(file: Path) -> Iterator[None]:
    """Show on the terminal what other processes log to a file meanwhile, unless the program logs already.

    Args:
        file: may not be there yet; what it holds before is not shown.
    """
    if logging.getLogger().handlers:
        yield
        return
    ended, shown = Event(), file.stat().st_size if file.is_file() else 0

    def follow() -> None:
        nonlocal shown
        is_last = False
        while not is_last:
            is_last = ended.wait(_SECONDS_BETWEEN_LOOKS)
            if file.is_file():
                with file.open("rb") as lines:
                    lines.seek(shown)
                    new = lines.read()
                shown += len(new)
                sys.stderr.write(new.decode("utf-8", errors="replace"))
                sys.stderr.flush()

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
