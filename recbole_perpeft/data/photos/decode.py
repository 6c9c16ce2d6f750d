"""Bytes of image files as RGB images: within limits, on white, and told apart by what is in them, not by names."""

import io
import re
import warnings
from functools import lru_cache
from pickle import PickleBuffer
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

from recbole_perpeft.core.digest import digest
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.photos.apart import Apart, ApartError

# Version of what decoding makes of a file. Version 1 laid transparency on black, made 16-bit greys white, and read
# fewer formats; caches keep digests by which photos are found that it decoded otherwise.
DECODING = 2
MAX_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 100
# Other decoders of Pillow start programs or are rarely tested.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
_NEW_FORMATS = ("TIFF", "AVIF")
# What else turns out to be in files that are called photos, by how it begins.
_OTHERS = {
    "AVIF": rb".{4}ftyp(avif|avis)",
    "HEIC": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "ICO": rb"\0\0[\1\2]\0",
    "PPM": rb"P[1-7fF]\s",
    "PSD": rb"8BPS",
    "PDF": rb"%PDF",
    "EPS": rb"%!PS",
    "SVG": rb"\s*<(\?xml|svg)",
    "HTML": rb"(?i:\s*<(!doctype|html|head|body))",
}
_OTHER_FORMATS = {name: re.compile(begin, re.DOTALL) for name, begin in _OTHERS.items()}
_N_BEGIN = 64
_GREYS_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_JPEG, _SCAN = b"\xff\xd8\xff", b"\xff\xda"
# What bounds, together with the pixels, the time and memory that decoding takes. Files beyond are decoded in a child
# process under the limits of `PhotoLimits`: every scan of a JPEG may be of all pixels; earlier versions of Pillow copy
# the comments of a GIF with every 255 bytes more, and as much for every tag of a TIFF or of EXIF as the tag claims.
MOST_SCANS, LONGEST_FILE, LONGEST_EXIF = 20, 16 * 2**20, 2**16
_LONGEST_OF_KIND = {b"GI": 2**20, b"II": 2**16, b"MM": 2**16}
_EXIF = ("exif", "Raw profile type exif")


class DamagedImageError(Exception):
    """The image cannot be used; the message says why."""


def decode_image(data: bytes, limits: PhotoLimits = USUAL_LIMITS) -> Image.Image:
    """Decode a file completely, of an animation the first picture, turned upright by its EXIF orientation, as RGB.

    What is transparent shows white, and greys of 16 bits are scaled to 8.

    Args:
        data: the bytes of the file.
        limits: of what may take for ever.

    Raises:
        DamagedImageError: empty, not an image of a format that is read, cut off, damaged, absurdly large, or beyond
            the limits.
    """
    if not data:
        raise DamagedImageError("the file is empty")
    image = _decoded(data, LONGEST_EXIF) if _is_bounded(data) else None
    if image is not None:
        return image
    try:
        size, pixels = _child(limits)(_pixels, PickleBuffer(data))
    except ApartError as error:
        raise DamagedImageError(
            f"decoding it {error}: save it anew, or raise photo_seconds or photo_memory and delete what is cached"
        ) from error
    return Image.frombytes("RGB", size, pixels)


def _is_bounded(data: bytes) -> bool:
    """Whether a file takes no more time and memory than its pixels do, EXIF apart."""
    if data.startswith(_JPEG) and data.count(_SCAN) > MOST_SCANS:
        return False
    return len(data) <= _LONGEST_OF_KIND.get(data[:2], LONGEST_FILE)


@lru_cache(maxsize=2)
def _child(limits: PhotoLimits) -> Apart:
    return Apart(limits.photo_seconds, limits.photo_memory * 2**20)


def _pixels(data: bytes) -> tuple[tuple[int, int], Any]:
    """Width, height and pixels of an image, in the child."""
    image = _decoded(bytes(data), None)
    assert image is not None
    return image.size, PickleBuffer(image.tobytes())


def _decoded(data: bytes, longest_exif: int | None) -> Image.Image | None:
    """The image; `None` if it has more EXIF than `longest_exif`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about oddities of a file that it decodes all the same
        image = _opened(data)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DamagedImageError(f"{width} x {height} pixels are too many, at most {MAX_PIXELS:,}")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise DamagedImageError(f"{width} x {height} pixels are too elongated, at most {MAX_ASPECT_RATIO} to 1")
        try:
            image.load()  # what stands behind the pixels counts too
            if longest_exif is not None and any(len(image.info.get(name, "")) > longest_exif for name in _EXIF):
                return None
            ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image)
        except (MemoryError, DamagedImageError):
            raise
        except Exception as error:  # as below
            raise DamagedImageError(f"truncated or damaged: {error}") from error


def image_digest(data: bytes) -> np.ndarray:
    """Digest of the bytes of an image file, and of the version of decoding where that matters, uint8 [16]."""
    version = b"decoding %d" % DECODING if _was_decoded_otherwise(data) else b""
    return np.frombuffer(digest(data, version).digest(), np.uint8)


def _was_decoded_otherwise(data: bytes) -> bool:
    """Whether version 1 of decoding made something else of a file."""
    if not data or data.startswith(_JPEG):
        return False
    if _is_bounded(data):
        return _is_otherwise(data)
    try:
        return _child(USUAL_LIMITS)(_is_otherwise, PickleBuffer(data))
    except ApartError:
        return False


def _is_otherwise(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _opened(data)
        except DamagedImageError:
            return False
    return image.format in _NEW_FORMATS or image.mode in ("I", *_GREYS_OF_16_BITS) or image.has_transparency_data


def _opened(data: bytes) -> Image.Image:
    """What the head of a file says; pixels are not decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise DamagedImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        begin = data[:_N_BEGIN]
        for name, pattern in _OTHER_FORMATS.items():
            if pattern.match(begin):
                readable = ", ".join(IMAGE_FORMATS)
                raise DamagedImageError(f"files of {name} are not read; save it as one of {readable}") from error
        raise DamagedImageError("not an image, or damaged at its start") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder meets a damaged file with whatever its parser stumbles over
        raise DamagedImageError(f"damaged: {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" and image.format == "PNG" or image.mode in _GREYS_OF_16_BITS:
        image = _as_8_bits(image)
    if image.mode in ("I", "F"):
        raise DamagedImageError("its pixels are numbers of 32 bits, whose black and white are not known")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image if image.mode == "RGB" else image.convert("RGB")


def _as_8_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits by their higher byte, as Pillow reads colours of 16 bits."""
    values = np.asarray(image).astype(np.uint16)
    if (transparent := image.info.get("transparency")) is not None:
        values[values == transparent] = np.iinfo(np.uint16).max
    return Image.fromarray((values >> 8).astype(np.uint8))
