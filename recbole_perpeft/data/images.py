"""Files of images: which belongs to an item, whether it has changed, and its pixels."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from recbole_perpeft.core.digest import DIGEST_BYTES, row_digests
from recbole_perpeft.core.logs import LOGGER

IMAGE_FOLDER = "images"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# What files of these names turn out to hold. Other decoders of Pillow start programs or are rarely tested.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_FILE_BYTES = 100 * 2**20
MAX_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 100
NO_FILE_STAMP = (-1, -1, -1)


class DamagedImageError(Exception):
    """The image cannot be used; the message says why."""


def choose_images(names: Iterable[str]) -> dict[str, str]:
    """File name by item id; where an item has several images, the first in the order of `IMAGE_SUFFIXES`."""
    chosen: dict[str, tuple[int, str]] = {}
    several: set[str] = set()
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        candidate = (IMAGE_SUFFIXES.index(suffix.lower()), name)
        if stem in chosen:
            several.add(stem)
        chosen[stem] = min(candidate, chosen.get(stem, candidate))
    if several:
        example = min(several)
        LOGGER.warning(
            f"{len(several)} items have several images, for instance {example!r}; "
            f"{chosen[example][1]} is used (the order is {', '.join(IMAGE_SUFFIXES)})."
        )
    return {stem: name for stem, (_, name) in chosen.items()}


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
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise DamagedImageError(f"{size:,} bytes are too many, at most {MAX_FILE_BYTES:,}")
            return file.read()
    except OSError as error:
        raise DamagedImageError(f"cannot be read: {error.strerror}") from error


def image_digest(data: bytes) -> np.ndarray:
    """Digest of the bytes of an image file, uint8 [16]."""
    return row_digests([data])[0]


def digest_of_file(path: Path | None) -> np.ndarray:
    """Digest of an image as a cache holds it: zeros where nothing can be read."""
    if path is not None:
        try:
            return image_digest(read_image_file(path))
        except DamagedImageError:
            pass
    return np.zeros_like(image_digest(b""))


def decode_image(data: bytes) -> Image.Image:
    """Decode a file completely, turned upright by its EXIF orientation, as RGB.

    Raises:
        DamagedImageError: empty, not an image, cut off, damaged, or absurdly large.
    """
    if not data:
        raise DamagedImageError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about oddities of a file that it decodes all the same
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except Image.DecompressionBombError as error:
            raise DamagedImageError(f"more than {MAX_PIXELS:,} pixels") from error
        except Image.UnidentifiedImageError as error:
            raise DamagedImageError("not an image, or damaged at its start") from error
        except MemoryError:
            raise
        except Exception as error:  # a decoder meets a damaged file with whatever its parser stumbles over
            raise DamagedImageError(f"damaged: {error}") from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DamagedImageError(f"{width} x {height} pixels are too many, at most {MAX_PIXELS:,}")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise DamagedImageError(f"{width} x {height} pixels are too elongated, at most {MAX_ASPECT_RATIO} to 1")
        try:
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise DamagedImageError(f"truncated or damaged: {error}") from error


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
) -> ProcessedImages:
    """Read, decode and process images.

    Args:
        paths: their files; None where there is no image.
        process: RGB image to uint8 [3, H, W].
        size: H and W.
        run: as `map`; that of an executor takes its threads.
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
            pixels[place] = _processed(decode_image(data), process)
        except DamagedImageError as error:
            damaged[place] = str(error)

    list(run(fill, range(n)))
    return ProcessedImages(pixels, digests, stamps, dict(sorted(damaged.items())))


def _processed(image: Image.Image, process: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        return process(image)
    except ValueError as error:
        raise DamagedImageError(f"the processor fails on this image of {image.size} pixels: {error}") from error
