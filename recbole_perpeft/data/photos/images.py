"""Files of images: which belongs to an item, whether it has changed, and its pixels."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from recbole_perpeft.core.digest import DIGEST_BYTES
from recbole_perpeft.core.files import composed, open_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image, image_digest

IMAGE_FOLDER = "images"
# How files of images are called; what is in them decides how they are read.
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "gif", "avif", "tif", "tiff", "bmp")
_RANKS = {suffix: rank for rank, suffix in enumerate(IMAGE_SUFFIXES)}
MAX_FILE_BYTES = 100 * 2**20
NO_FILE_STAMP = (-1, -1, -1)
_NEVER_IN_NAMES = frozenset('/\\:*?"<>|')


def choose_images(names: Iterable[str], tokens: Iterable[str]) -> dict[str, str]:
    """File name by item id, of the items that have an image.

    A file is called as its item, with a suffix or without. Where an item has several, the first in the order of
    `IMAGE_SUFFIXES` counts, and one without a suffix comes last. Ids and names are compared in one form of Unicode.

    Args:
        names: of files.
        tokens: item ids.
    """
    key_of = {token: composed(token) for token in tokens}
    wanted = set(key_of.values())
    candidates: dict[str, tuple[int, str]] = {}
    several: set[str] = set()

    def add(key: str, candidate: tuple[int, str]) -> None:
        if key in wanted:
            if key in candidates:
                several.add(key)
                candidate = min(candidate, candidates[key])
            candidates[key] = candidate

    for name in names:
        stem, _, suffix = name.rpartition(".")
        if stem and (rank := _RANKS.get(suffix.lower())) is not None:
            add(composed(stem), (rank, name))
        add(composed(name), (len(_RANKS), name))
    chosen = {token: candidates[key][1] for token, key in key_of.items() if key in candidates}
    if several:
        example = min(token for token, key in key_of.items() if key in several)
        LOGGER.warning(
            f"{len(several)} items have several images, for instance {example!r}; {chosen[example]} is used (the "
            f"order is {', '.join(IMAGE_SUFFIXES)}, none)."
        )
    return chosen


def is_no_file_name(token: str) -> bool:
    """Whether an item id has characters that cannot be in names of files everywhere, so that shops rename them."""
    return not _NEVER_IN_NAMES.isdisjoint(token)


def file_stamp(path: Path | None) -> tuple[int, int, int]:
    """Size in bytes, and times in ns at which a file and its status (as permissions) changed; -1 without a file."""
    if path is None:
        return NO_FILE_STAMP
    try:
        status = os.stat(path)
    except OSError:
        return NO_FILE_STAMP
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_image_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DamagedImageError: the file cannot be read or is too large.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise DamagedImageError(f"{size:,} bytes are too many, at most {MAX_FILE_BYTES:,}")
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise DamagedImageError(f"cannot be read: {error.strerror}") from error


def digest_of_file(path: Path | None) -> np.ndarray:
    """Digest of an image as a cache holds it: zeros where nothing can be read."""
    if path is not None:
        try:
            return image_digest(read_image_file(path))
        except DamagedImageError:
            pass
    return np.zeros_like(image_digest(b""))


class ProcessedImages(NamedTuple):
    """Images of some items as a store keeps them.

    Attributes:
        pixels: uint8 [n, 3, H, W]; zeros where there is no image, or none that can be used.
        digests: of the bytes of their files, uint8 [n, DIGEST_BYTES].
        stamps: of their files, int64 [n, 3], see `file_stamp`.
        damaged: why an image cannot be used, by its place among them.
    """

    pixels: np.ndarray
    digests: np.ndarray
    stamps: np.ndarray
    damaged: dict[int, str]


def process_images(
    paths: Sequence[Path | None],
    process: Callable[[Image.Image], np.ndarray],
    size: tuple[int, int],
    run: Callable[..., Iterable[Any]] = map,
    limits: PhotoLimits = USUAL_LIMITS,
) -> ProcessedImages:
    """Read, decode and process images.

    Args:
        paths: their files; None where there is no image.
        process: RGB image to uint8 [3, H, W].
        size: H and W.
        run: as `map`; that of an executor takes its threads.
        limits: of decoding.
    """
    n = len(paths)
    pixels, digests = np.zeros((n, 3, *size), dtype=np.uint8), np.zeros((n, DIGEST_BYTES), dtype=np.uint8)
    stamps = np.zeros((n, 3), dtype=np.int64)
    damaged: dict[int, str] = {}

    def fill(place: int) -> None:
        path = paths[place]
        # Before the file is read: should it change meanwhile, the older stamp makes the next opening look again.
        stamps[place] = file_stamp(path)
        if path is None:
            return
        try:
            data = read_image_file(path)
            digests[place] = image_digest(data)
            pixels[place] = _processed(decode_image(data, limits), process)
        except DamagedImageError as error:
            damaged[place] = str(error)

    list(run(fill, range(n)))
    return ProcessedImages(pixels, digests, stamps, dict(sorted(damaged.items())))


def _processed(image: Image.Image, process: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        return process(image)
    except ValueError as error:
        raise DamagedImageError(f"the processor fails on this image of {image.size} pixels: {error}") from error
