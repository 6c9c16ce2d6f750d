"""Images in the LMDB files of the IISAN and MicroLens authors, beside folders.

LMDB maps its file into memory and believes what is in it: one that was cut off or changed ends the process that reads
it, or keeps it busy for ever. Only child processes read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from recbole_perpeft.convert.reading.image_files import ImageReference, images_of_folder
from recbole_perpeft.convert.reading.pickles import UnsafePickleError, load_stored_image
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import check_regular
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.photos.apart import Apart, ApartError, damaged
from recbole_perpeft.data.photos.decode import MAX_ASPECT_RATIO, MAX_PIXELS, DamagedImageError

MAX_STORED_BYTES = 3 * MAX_PIXELS + 2**16
LONGEST_READING = 60  # seconds
_KEYS_AT_ONCE = 1000


@dataclass(frozen=True)
class StoredImage:
    """An image under the key of its item id: a pickled object with `size` (height, width) and `image` (RGB bytes)."""

    database: Path
    token: str

    def stamp(self) -> str:
        status = self.database.stat()
        return f"{self.token} {status.st_size} {status.st_mtime_ns}"

    def load(self, limits: PhotoLimits = USUAL_LIMITS) -> tuple[bytes | None, Image.Image]:
        pickled = _stored(self.database, self.token)
        try:
            return None, _image(load_stored_image(pickled, self.token))
        except UnsafePickleError as error:
            raise DamagedImageError(str(error)) from error

    def file(self) -> Path | None:
        return None

    def mapped(self) -> Path | None:
        return self.database


def _image(stored: dict[str, Any]) -> Image.Image:
    size, data = stored.get("size"), stored.get("image")
    if not (isinstance(size, (tuple, list)) and len(size) >= 2 and all(type(side) is int for side in size[:2])):
        raise DamagedImageError("has no size")
    height, width = size[:2]
    if min(height, width) < 1 or height * width > MAX_PIXELS or max(size[:2]) > MAX_ASPECT_RATIO * min(size[:2]):
        raise DamagedImageError(f"{width} x {height} pixels cannot be used")
    if not isinstance(data, bytes) or len(data) != 3 * height * width:
        raise DamagedImageError(f"does not hold {width} x {height} RGB pixels")
    return Image.frombytes("RGB", (width, height), data)


@lru_cache(maxsize=1)
def _opened(path: Path) -> Any:
    import lmdb

    check_regular(path)
    return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_spare_txns=1)


@contextmanager
def _transaction(path: Path) -> Iterator[Any]:
    import lmdb

    try:
        with _opened(path).begin(buffers=True) as transaction:
            yield transaction
    except (OSError, lmdb.Error) as error:
        raise PerPEFTError(f"{path}: not an LMDB file that can be read ({error})") from error


def _stored(path: Path, token: str) -> bytes:
    with _transaction(path) as transaction:
        stored = transaction.get(token.encode())
        if stored is None:
            raise DamagedImageError("is not in the database any more")
        if len(stored) > MAX_STORED_BYTES:
            raise DamagedImageError(f"{len(stored):,} bytes are too many")
        return bytes(stored)


def _known(path: Path, tokens: Sequence[str]) -> list[str]:
    """Those of some item ids that are keys."""
    with _transaction(path) as transaction, transaction.cursor() as cursor:
        longest = _opened(path).max_key_size()
        return [token for token in tokens if len(token.encode()) <= longest and cursor.set_key(token.encode())]


def images_of_lmdb(path: Path, tokens: Sequence[str]) -> dict[str, ImageReference]:
    """The images of an LMDB file by item id.

    Raises:
        PerPEFTError: the file cannot be read, or has no key that is an item id.
    """
    if not path.exists():
        raise PerPEFTError(f"{path} does not exist; it should hold images")
    if importlib.util.find_spec("lmdb") is None:
        raise PerPEFTError(f"{path}: LMDB files need the package lmdb: pip install 'recbole-perpeft[convert]'")
    read, found = Apart(LONGEST_READING), dict[str, ImageReference]()
    for start in range(0, len(tokens), _KEYS_AT_ONCE):
        try:
            known = read(_known, path, tokens[start : start + _KEYS_AT_ONCE])
        except ApartError as error:
            raise PerPEFTError(damaged(path, error)) from error
        found |= {token: StoredImage(path, token) for token in known}
    if tokens and not found:
        raise PerPEFTError(f"{path}: no key is an item id, as {tokens[0]}")
    return found


def images_of(path: Path, tokens: Sequence[str]) -> dict[str, ImageReference]:
    """Images of a folder of files, or of an LMDB file or folder."""
    if path.suffix == ".lmdb" or (path / "data.mdb").is_file():
        return images_of_lmdb(path, tokens)
    return images_of_folder(path, tokens)
