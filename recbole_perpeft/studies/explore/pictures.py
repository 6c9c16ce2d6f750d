"""Photos small enough to stand in a page, plain or with what somebody looks at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from recbole_perpeft.data.photos.decode import DamagedImageError, decode_image
from recbole_perpeft.data.photos.images import read_image_file

_SMALL, _LARGE = 96, 160  # pixels of the longer side
_HOT = np.array([213, 94, 0], dtype=np.float64)  # Okabe and Ito's vermilion


class Album:
    """Photos of items as addresses that hold their data.

    Args:
        paths: Photo of every item, None where there is none.
        limit: Bytes that all photos together may take; those after it are left out.
    """

    def __init__(self, paths: Sequence[Path | None], limit: int = 12_000_000) -> None:
        self._paths = paths
        self._left = limit
        self._known: dict[int, str | None] = {}
        self.n_left_out = 0

    def photo(self, row: int) -> str | None:
        """The photo of an item by its place in `paths`; None if it has none, or the page is full."""
        if row not in self._known:
            self._known[row] = self._small(row)
        return self._known[row]

    def _small(self, row: int) -> str | None:
        path = self._paths[row]
        if path is None:
            return None
        try:
            image = decode_image(read_image_file(path))
        except DamagedImageError:
            return None
        image.thumbnail((_SMALL, _SMALL))
        address = _address(image, "JPEG", quality=75)
        if len(address) > self._left:
            self.n_left_out += 1
            return None
        self._left -= len(address)
        return address


def looked_at(pixels: np.ndarray, patches: np.ndarray) -> str:
    """A photo with warm colour where somebody looks.

    Args:
        pixels: uint8 [H, W, 3], as the encoder reads it.
        patches: float [rows, columns], shares of the patches, at least 0.

    Returns:
        Address of a picture.
    """
    strength = patches / patches.max() if patches.max() > 0 else patches
    size = (_LARGE, _LARGE)
    photo = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    heat = Image.fromarray((255 * strength).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    weight = 0.75 * np.asarray(heat, dtype=np.float64)[..., None] / 255
    mixed = (1 - weight) * photo[..., None] + weight * _HOT
    return _address(Image.fromarray(mixed.astype(np.uint8)), "JPEG", quality=80)


def _address(image: Image.Image, form: str, **options) -> str:
    data = io.BytesIO()
    image.save(data, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
