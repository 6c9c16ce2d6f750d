"""Processors for tests of the cache, in a module that worker processes import quickly."""

import os
import signal
from dataclasses import dataclass, field

import numpy as np


@dataclass
class SmallProcessor:
    """A processor that needs no model: code points as token ids; 8 x 6 pixels."""

    image_size: tuple[int, int] = (6, 8)
    text_length: int = 10
    trim_text: bool = True
    description: dict = field(default_factory=lambda: {"name": "small", "size": (6, 8)})

    def image(self, image):
        return np.asarray(image.resize((8, 6))).transpose(2, 0, 1)

    def text(self, titles):
        ids = np.zeros((len(titles), self.text_length), dtype=np.int32)
        for row, title in zip(ids, titles, strict=True):
            codes = [ord(character) for character in title[: self.text_length]]
            row[: len(codes)] = codes
        return ids, (ids > 0).astype(np.uint8)


class DyingProcessor(SmallProcessor):
    """Ends its process, as a system that lacks memory would."""

    def text(self, titles):
        os.kill(os.getpid(), signal.SIGKILL)


class FailingProcessor(SmallProcessor):
    """Cannot make anything of an image."""

    def image(self, image):
        raise ValueError("too odd")
