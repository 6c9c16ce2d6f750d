"""Where the images of items come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.photos.decode import decode_image
from recbole_perpeft.data.photos.images import choose_images, is_no_file_name, read_image_file


class ImageReference(Protocol):
    """One image, wherever it is; it is sent to worker processes."""

    def stamp(self) -> str:
        """Differs when the image has changed."""
        ...

    def load(self, limits: PhotoLimits = USUAL_LIMITS) -> tuple[bytes | None, Image.Image]:
        """Bytes of the image file, `None` if there is no such file, and the RGB image.

        Args:
            limits: of decoding it.

        Raises:
            DamagedImageError: the image cannot be used.
        """
        ...

    def file(self) -> Path | None:
        """The file that holds the bytes and nothing else, if there is one."""
        ...

    def mapped(self) -> Path | None:
        """The file that is mapped into memory to read the image: a damaged one may end the process."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    def stamp(self) -> str:
        try:
            status = os.stat(self.path)
        except OSError:
            return ""
        return f"{self.path.name} {status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def load(self, limits: PhotoLimits = USUAL_LIMITS) -> tuple[bytes | None, Image.Image]:
        data = read_image_file(self.path)
        return data, decode_image(data, limits)

    def file(self) -> Path | None:
        return self.path

    def mapped(self) -> Path | None:
        return None


def images_of_folder(folder: Path, tokens: Sequence[str]) -> dict[str, ImageReference]:
    """The files of a folder that are named after items, by item id; see `choose_images`.

    Raises:
        PerPEFTError: the folder cannot be listed, or no file is named after an item.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise PerPEFTError(f"{folder}: cannot be listed ({error.strerror}); it should hold images") from error
    chosen = choose_images(names, tokens)
    found: dict[str, ImageReference] = {token: ImageFile(folder / name) for token, name in chosen.items()}
    if tokens and not found:
        example = names[0] if names else "nothing"
        raise PerPEFTError(
            f"{folder}: no file is named after an item, as in {tokens[0]}.jpg; it holds {example} among others"
        )
    if renamed := [token for token in tokens if token not in found and is_no_file_name(token)]:
        LOGGER.warning(
            f"{folder}: {len(renamed)} items have no image, and ids with characters rarely in names of "
            f"files, as {renamed[0]!r}; a column of the items can name their files (--image_column of table)"
        )
    return found
