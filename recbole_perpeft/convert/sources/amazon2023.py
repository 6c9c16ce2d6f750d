"""Amazon Reviews 2023 (amazon-reviews-2023.github.io): reviews, 5-core tables and item metadata of any category."""

from __future__ import annotations

import argparse
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from recbole_perpeft.convert.download import download_images
from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.images import file_stem
from recbole_perpeft.convert.reading.image_files import ImageFile, ImageReference
from recbole_perpeft.convert.source import Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import column_place, csv_columns
from recbole_perpeft.data.files.json_lines import json_tables
from recbole_perpeft.data.files.tables import number

ITEM, USER, TIME, RATING = "parent_asin", "user_id", "timestamp", "rating"
REVIEW = pa.schema([(USER, pa.string()), (ITEM, pa.string()), (TIME, pa.int64()), (RATING, pa.float64())])
SIZES = ("large", "hi_res", "thumb")
_PICTURE = pa.struct([("variant", pa.string()), *((size, pa.string()) for size in SIZES)])
META = pa.schema([(ITEM, pa.string()), ("title", pa.string()), ("images", pa.list_(_PICTURE))])
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Amazon2023Source(Source):
    """Amazon Reviews 2023: reviews (.jsonl, .jsonl.gz) or the 5-core tables (.csv), and metadata.

    Args:
        reviews: files of reviews, taken one after the other.
        meta: files of metadata; none: no titles.
        images: folder of images, named after the item (`B00....jpg`) or as in their address; `None` for no images.
        download: fetch images that are missing there.
        requests_per_second: of downloads, at most.
        show_progress: show bars.
    """

    name = "amazon2023"
    example = "--input Toys.jsonl.gz --meta meta_Toys.jsonl.gz --images=photos --download --output=dataset_atomic/toys"
    # As the published 5-core tables were made.
    filters = FilterSettings(repeats="drop_items", k_core=5)

    def __init__(
        self,
        reviews: Sequence[Path],
        meta: Sequence[Path] = (),
        images: Path | None = None,
        download: bool = False,
        requests_per_second: float = 10.0,
        show_progress: bool = False,
    ):
        self._reviews, self._meta, self._folder = tuple(reviews), tuple(meta), images
        self._download, self._requests_per_second = download, requests_per_second
        self._show_progress = show_progress
        self._addresses: dict[str, str] = {}
        if download and images is None:
            raise PerPEFTError("--download needs --images, the folder to keep the images in")
        if download and not meta:
            raise PerPEFTError("--download needs --meta, the files that hold the addresses of images")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--input", type=Path, nargs="+", required=True, help="reviews: .jsonl, .jsonl.gz, or .csv tables"
        )
        parser.add_argument("--meta", type=Path, nargs="+", default=[], help="metadata: meta_<category>.jsonl(.gz)")
        parser.add_argument("--images", type=Path, help="folder of images, named <parent_asin>.jpg or as in their URL")
        parser.add_argument("--download", action="store_true", help="fetch images that --images lacks")
        parser.add_argument(
            "--requests_per_second", type=float, default=10.0, help="of --download, at most (%(default)s)"
        )

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> Amazon2023Source:
        options = {name: arguments[name] for name in ("meta", "images", "download", "requests_per_second")}
        return cls(arguments["input"], **options, show_progress=show_progress)

    def input_files(self) -> list[Path]:
        return [*self._reviews, *self._meta]

    def events(self) -> Iterator[Events]:
        for path in self._reviews:
            suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
            read = self._table_events if suffixes[-1:] == [".csv"] else self._review_events
            yield from read(path)

    def _review_events(self, path: Path) -> Iterator[Events]:
        for lines, table in json_tables(path, REVIEW, self._show_progress):
            users, items, times, ratings = (column.combine_chunks() for column in table.columns)
            yield Events(path, lines, users, items, _floats(times), _floats(ratings))

    def _table_events(self, path: Path) -> Iterator[Events]:
        return batched_events(path, self._table_rows(path))

    def _table_rows(self, path: Path) -> Iterator[tuple]:
        optional: list[str] = []

        def places(header: list[str]) -> list[int]:
            optional.extend(name for name in (TIME, RATING) if name in header)
            return [column_place(path, header, name) for name in (USER, ITEM, *optional)]

        for line, (user, item, *cells) in csv_columns(path, places, show_progress=self._show_progress):
            numbers = {name: number(path, line, cell, name) for name, cell in zip(optional, cells, strict=True)}
            yield line, user, item, numbers.get(TIME), numbers.get(RATING)

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        wanted = set(tokens)
        titles: dict[str, str] = {}
        for path in self._meta:
            for _, table in json_tables(path, META, self._show_progress):
                for row in table.filter(_among(table[ITEM], wanted)).to_pylist():
                    token = row[ITEM]
                    # Some items have two lines; the first counts.
                    titles.setdefault(token, row["title"] or "")
                    address = image_address(row["images"])
                    if address:
                        self._addresses.setdefault(token, address)
        return {"title": titles}

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        if self._folder is None:
            return {}
        if self._download:
            missing = {token: url for token, url in self._addresses.items() if not _found(self._folder, token, url)}
            download_images(missing, self._folder, self._requests_per_second, show_progress=self._show_progress)
        elif not self._folder.is_dir():
            raise PerPEFTError(f"{self._folder} is not a folder; --download fetches images into it")
        found = {token: _found(self._folder, token, self._addresses.get(token, "")) for token in tokens}
        return {token: ImageFile(path) for token, path in found.items() if path is not None}


def _found(folder: Path, token: str, address: str) -> Path | None:
    """The file of an item's image: by the name of the item, or by its name in the address."""
    try:
        base = unquote(posixpath.basename(urlsplit(address).path))
    except ValueError:  # a host such as [m.media
        base = ""
    names = [f"{file_stem(token)}{suffix}" for suffix in IMAGE_SUFFIXES] + ([base] if base.strip(".") else [])
    paths = (folder / name for name in names if "/" not in name and "\0" not in name)
    return next((path for path in paths if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name of more characters than the file system takes
        return False


def _among(tokens: pa.ChunkedArray, wanted: set[str]) -> pa.Array:
    """Which are wanted, bool [n]. `is_in` of pyarrow would hash all that is wanted anew for each block."""
    return pa.array([token in wanted for token in tokens.to_pylist()], pa.bool_())


def _floats(column: pa.Array) -> np.ndarray:
    """Numbers [n], NaN where they are missing."""
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def image_address(pictures: list[dict[str, str | None]] | None) -> str:
    """Address of an item's main picture, in a size that is enough for all models; empty if there is none."""
    ordered = sorted(pictures or [], key=lambda picture: picture["variant"] != "MAIN")
    return next((address for picture in ordered for size in SIZES if (address := picture[size])), "")
