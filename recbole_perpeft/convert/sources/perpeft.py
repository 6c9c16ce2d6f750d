"""The four data sets of PerPEFT: sports_outdoors, toys_games, beauty_care, arts."""

from __future__ import annotations

import argparse
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.reading.archive import images_of_zip, opened_zip, unpack_member
from recbole_perpeft.convert.reading.image_files import ImageReference, images_of_folder
from recbole_perpeft.convert.reading.pickles import load_plain, number_in, shown, text_in
from recbole_perpeft.convert.source import ExpectedCounts, Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import checked_name
from recbole_perpeft.core.lines import line_error, text_lines

# Table of the paper (arXiv 2602.09445); it does not count interactions.
EXPECTED = {
    "sports_outdoors": ExpectedCounts(25_363, 15_701),
    "toys_games": ExpectedCounts(19_026, 14_718),
    "beauty_care": ExpectedCounts(45_490, 31_151),
    "arts": ExpectedCounts(24_511, 18_884),
}
SEQUENCES, ITEM_IDS, TITLES = "{}_final.txt", "{}_item2id_final.pickle", "{}_texts_final.pickle"
IMAGES = "{}_images"


class PerPEFTSource(Source):
    """The PerPEFT authors' data: mmrec_datasets.zip, or the folder that it unpacks to.

    Args:
        path: the zip file, or a folder that holds `<set>_final.txt` and the files that belong to it.
        data_set: which set.
        show_progress: show bars.
    """

    name = "perpeft"
    example = "--input=mmrec_datasets.zip --set=toys_games --output=dataset_atomic/toys_games"

    def __init__(self, path: Path, data_set: str, show_progress: bool = False):
        self._path, self._data_set, self._show_progress = path, checked_name(data_set, "--set"), show_progress
        self._folder = path
        self._archive: Path | None = None
        if not path.exists():
            raise PerPEFTError(f"{path} does not exist; name mmrec_datasets.zip or the folder it unpacks to")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=Path, required=True, help="mmrec_datasets.zip, or the unpacked folder")
        parser.add_argument("--set", required=True, help=f"{', '.join(EXPECTED)}, or another of the same form")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> PerPEFTSource:
        return cls(arguments["input"], arguments["set"], show_progress)

    def input_files(self) -> list[Path]:
        if self._path.is_file():
            return [self._path]
        return [self._file(name) for name in (SEQUENCES, ITEM_IDS, TITLES)]

    def prepare(self, folder: Path) -> None:
        if self._path.is_dir():
            return
        self._folder = folder
        with opened_zip(self._path) as archive:
            for name in (SEQUENCES, ITEM_IDS, TITLES):
                self._unpack(archive, name.format(self._data_set), folder)
            zipped = f"{IMAGES.format(self._data_set)}.zip"
            if any(posixpath.basename(member) == zipped for member in archive.namelist()):
                self._unpack(archive, zipped, folder)
            else:
                self._archive = self._path

    def _unpack(self, archive: zipfile.ZipFile, name: str, folder: Path) -> None:
        found = [member for member in archive.namelist() if posixpath.basename(member) == name]
        if len(found) != 1:
            raise PerPEFTError(f"{self._path}: holds {len(found)} files {name} instead of one; is --set right?")
        unpack_member(archive, found[0], folder / name)

    def _file(self, name: str) -> Path:
        path = self._folder / name.format(self._data_set)
        if not path.is_file():
            raise PerPEFTError(f"{path} is missing; name the folder that holds it, and check --set")
        return path

    def events(self) -> Iterator[Events]:
        return batched_events(self._file(SEQUENCES), self._rows())

    def _rows(self) -> Iterator[tuple[int, str, str]]:
        path = self._file(SEQUENCES)
        id_of = self._item_ids()
        for line, text in text_lines(path, self._show_progress):
            cells = text.split()
            if not cells:
                continue
            if len(cells) != 2:
                raise line_error(path, line, "not of the form: user item")
            user, item = cells
            if item not in id_of:
                raise line_error(path, line, f"the item {item} is not in {self._file(ITEM_IDS).name}")
            yield line, user, id_of[item]

    def _item_ids(self) -> dict[str, str]:
        """Raw id by number, the number as text."""
        path = self._file(ITEM_IDS)
        tokens: dict[str, str] = {}
        for index, token in _dictionary(path, "item numbers and item ids").items():
            if type(index) is not int and not isinstance(index, str):
                raise PerPEFTError(f"{path}: the key {shown(index)} is no item number")
            number = index if isinstance(index, str) else str(number_in(path, "a key", index))
            if number in tokens:
                raise PerPEFTError(f"{path}: the item number {number} is there as a number and as a text")
            tokens[number] = text_in(path, f"the value of {shown(index)}", token)
        if len(set(tokens.values())) < len(tokens):
            raise PerPEFTError(f"{path}: two item numbers have the same item id")
        return tokens

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        path = self._file(TITLES)
        return {
            "title": {
                text_in(path, "a key", token): text_in(path, f"the title of {shown(token)}", title)
                for token, title in _dictionary(path, "item ids and titles").items()
            }
        }

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        name = IMAGES.format(self._data_set)
        if (self._folder / name).is_dir():
            return images_of_folder(self._folder / name, tokens)
        zipped = self._folder / f"{name}.zip"
        if zipped.is_file():
            return images_of_zip(zipped, tokens)
        return {} if self._archive is None else images_of_zip(self._archive, tokens, name)

    def expected(self) -> ExpectedCounts:
        return EXPECTED.get(self._data_set, ExpectedCounts())


def _dictionary(path: Path, what: str) -> dict[Any, Any]:
    loaded = load_plain(path)
    if not isinstance(loaded, dict):
        raise PerPEFTError(f"{path}: holds {shown(loaded)}, not a dictionary of {what}")
    return loaded
