"""Images for models of timm, prepared as timm does for evaluation, without the torchvision that timm's code needs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_MODES = ("center", "squash")


class TimmImageProcessor:
    """Resizes and crops; what `Processor` needs of an image processor of transformers.

    Args:
        pretrained_cfg: As in the `config.json` of a model of timm.
        key: The configuration key that names the model, for messages.

    Attributes:
        image_mean, image_std, rescale_factor, do_normalize, do_rescale: As in transformers.

    Raises:
        PerPEFTError: Images are to be prepared in a way that is rare and not known here.
    """

    do_normalize = do_rescale = True
    rescale_factor = 1 / 255

    def __init__(self, pretrained_cfg: Mapping[str, Any], key: str) -> None:
        channels, *size = pretrained_cfg.get("input_size") or (3, 224, 224)
        self._size: tuple[int, int] = (int(size[0]), int(size[1]))  # height and width
        self._share = float(pretrained_cfg.get("crop_pct") or 0.875)
        self._mode = str(pretrained_cfg.get("crop_mode") or "center")
        self._interpolation = str(pretrained_cfg.get("interpolation") or "bicubic")
        self.image_mean = _three(pretrained_cfg.get("mean") or _IMAGENET_MEAN)
        self.image_std = _three(pretrained_cfg.get("std") or _IMAGENET_STD)
        is_square = self._size[0] == self._size[1]
        is_known = self._mode in _CROP_MODES and self._interpolation.upper() in Image.Resampling.__members__
        if channels != 3 or not is_known or not (is_square or self._mode == "squash"):
            raise PerPEFTError(
                f"{key}: its images of {channels} channels, size {self._size}, crop mode {self._mode} and "
                f"interpolation {self._interpolation} cannot be prepared here; choose a model of square colour images"
            )

    def __call__(self, image: Image.Image, **_always: Any) -> dict[str, np.ndarray]:
        """`pixel_values`, uint8 [1, 3, H, W], of an RGB image; rescaling and normalisation are left to the model."""
        height, width = self._size
        resized = image.resize(self._resized(image.size), Image.Resampling[self._interpolation.upper()])
        left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
        cropped = resized.crop((left, top, left + width, top + height))
        return {"pixel_values": np.asarray(cropped).transpose(2, 0, 1)[None]}

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height before the crop."""
        height, width = (math.floor(length / self._share) for length in self._size)
        if self._mode == "squash":
            return width, height
        shortest = min(size)
        return int(width * size[0] / shortest), int(height * size[1] / shortest)

    def to_dict(self) -> dict[str, Any]:
        """What identifies it, JSON-able."""
        return {
            "image_processor_type": "timm",
            "size": list(self._size),
            "crop_pct": self._share,
            "crop_mode": self._mode,
            "interpolation": self._interpolation,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }


def _three(values: Sequence[float]) -> tuple[float, ...]:
    """A number a colour channel."""
    return tuple(float(value) for value in np.broadcast_to(values, 3))
