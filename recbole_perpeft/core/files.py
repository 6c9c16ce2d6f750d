"""Files of others: only regular ones are opened, what names them stays in its folder, no link of them is followed."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

from recbole_perpeft.core.errors import PerPEFTError

_CONTROL = "Cc"  # category of control characters in Unicode


def check_regular(path: Path) -> None:
    """Look at a file before a library opens it: a pipe would wait for a writer, and a device may never end.

    Raises:
        OSError: it is not there, or is neither a regular file nor a folder.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    check_regular(path)
    return open(path, "rb")


def read_regular(path: Path) -> bytes:
    """The bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def unlinked(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a file or folder of ours, as `opener` of `open` for instance; not what a link in its place leads to.

    In a folder that others may write to, somebody may have made the link beforehand.

    Raises:
        PerPEFTError: it is a link.
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if os.path.islink(path):
            raise PerPEFTError(f"{path} is a link, and what it leads to is not written: delete the link") from error
        raise


def is_inside(relative: str) -> bool:
    """Whether a path from outside, as data have it, stays in the folder that it is relative to."""
    parts = posixpath.normpath(relative).replace("\\", "/").split("/")
    is_absolute = parts[0] == "" or parts[0].endswith(":")
    return not is_absolute and ".." not in parts and is_printable(relative)


def path_inside(folder: Path, relative: str, what: str) -> Path:
    """A path from outside, as data have it.

    Args:
        folder: that it is relative to.
        relative: with slashes.
        what: gives the path, for the message.

    Raises:
        PerPEFTError: it leaves the folder, or has control characters.
    """
    if not is_inside(relative):
        raise PerPEFTError(f"{what}: the path {relative!r} leaves the folder {folder}, or has control characters")
    return folder / relative


def checked_name(name: str, what: str) -> str:
    """A name from outside that becomes part of paths.

    Raises:
        PerPEFTError: it cannot be the name of one file or folder.
    """
    if not is_file_name(name):
        raise PerPEFTError(f"{what}: {name!r} cannot be a name; leave out slashes and control characters")
    return name


def is_file_name(name: str) -> bool:
    """Whether a text from outside can be the name of a file, and of nothing in another folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\") and is_printable(name)


def is_printable(text: str) -> bool:
    """Whether a text has no control characters."""
    return text.isprintable() or all(unicodedata.category(character) != _CONTROL for character in text)


def composed(name: str) -> str:
    """A name in the form of Unicode (NFC) by which names are compared: macOS writes letters and accents apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
