"""Zip files from outside, of which nothing can reach beyond the files that we name."""

from __future__ import annotations

import lzma
import posixpath
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from recbole_perpeft.convert.reading.image_files import ImageReference
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import check_regular
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image
from recbole_perpeft.data.photos.images import MAX_FILE_BYTES, choose_images, file_stamp

MAX_MEMBER_BYTES = 64 * 2**30
MAX_RATIO = 250  # text and photos stay below 30
RATIO_COUNTS_FROM = 2**20
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file and check the list of its members.

    Raises:
        PerPEFTError: it cannot be read, or a member leaves the folder, is a link, is encrypted or is a bomb.
    """
    try:
        check_regular(path)
        archive = zipfile.ZipFile(path)
    except (OSError, *_READ_ERRORS) as error:
        raise PerPEFTError(f"{path}: not a zip file that can be read ({error}); get it again") from error
    with archive:
        for member in archive.infolist():
            problem = _problem(member)
            if problem:
                raise PerPEFTError(f"{path}: refused, as {member.filename!r} {problem}")
        yield archive


def _problem(member: zipfile.ZipInfo) -> str | None:
    name = member.filename.replace("\\", "/")
    parts = name.split("/")
    if posixpath.isabs(name) or ".." in parts or ":" in parts[0]:
        return "leaves its folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.file_size > MAX_MEMBER_BYTES:
        return f"unpacks to {member.file_size:,} bytes"
    if member.file_size > RATIO_COUNTS_FROM and member.file_size > MAX_RATIO * member.compress_size:
        return f"unpacks {member.compress_size:,} bytes to {member.file_size:,}"
    return None


def unpack_member(archive: zipfile.ZipFile, member: str, target: Path) -> Path:
    """Unpack one member to a file of our choice.

    Raises:
        PerPEFTError: it is damaged, or the disk does not take it.
    """
    try:
        with archive.open(member) as packed, open(target, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)  # never more than the size that was checked
    except (OSError, *_READ_ERRORS) as error:
        raise PerPEFTError(f"{archive.filename}: {member} cannot be unpacked ({error})") from error
    return target


@dataclass(frozen=True)
class ZippedImage:
    """An image in a zip file."""

    archive: Path
    member: str
    checksum: int

    def stamp(self) -> str:
        return f"{self.member} {self.checksum}"

    def load(self, limits: PhotoLimits = USUAL_LIMITS) -> tuple[bytes | None, Image.Image]:
        try:
            archive = _open_in_worker(self.archive, file_stamp(self.archive))
            if archive.getinfo(self.member).file_size > MAX_FILE_BYTES:
                raise DamagedImageError("unpacks to too many bytes")
            data = archive.read(self.member)
        except (OSError, *_READ_ERRORS) as error:
            raise DamagedImageError(f"cannot be unpacked: {error}") from error
        return data, decode_image(data, limits)

    def file(self) -> Path | None:
        return None

    def mapped(self) -> Path | None:
        return None


@lru_cache(maxsize=1)
def _open_in_worker(path: Path, stamp: tuple[int, int, int]) -> zipfile.ZipFile:
    """An archive that stays open; another file of its name has another stamp."""
    return zipfile.ZipFile(path)


def images_of_zip(path: Path, tokens: Sequence[str], folder: str | None = None) -> dict[str, ImageReference]:
    """The members of a zip file that are named after items, by item id; see `choose_images`.

    Args:
        path: the zip file.
        tokens: item ids.
        folder: name of the folder they are in; `None` for any.

    Raises:
        PerPEFTError: as `opened_zip`.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    with opened_zip(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            parent, name = posixpath.split(member.filename)
            if name and folder in (None, posixpath.basename(parent)):
                members.setdefault(name, member)
    chosen = {token: members[name] for token, name in choose_images(members, tokens).items()}
    return {token: ZippedImage(path, member.filename, member.CRC) for token, member in chosen.items()}
