"""The data sets of IISAN and IISAN-Versa: Scientific, Instrument, Office (github.com/GAIR-Lab/IISAN)."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.reading.image_files import ImageReference
from recbole_perpeft.convert.reading.image_lmdb import images_of
from recbole_perpeft.convert.source import ExpectedCounts, Source
from recbole_perpeft.core.lines import find_file, line_error, text_lines

SEQUENCES = "am_*_users*.tsv"
TITLES = "*_items.tsv"
# Table I of the papers, by a word in the name of the file of sequences; it counts the shortened sequences.
EXPECTED = {
    "Scientific": ExpectedCounts(12_076, 20_314, 81_711),
    "Instrument": ExpectedCounts(10_000, 19_246, 75_022),
    "Office": ExpectedCounts(10_000, 22_785, 71_276),
}


class IISANSource(Source):
    """The IISAN authors' data: Scientific, Instrument, Office.

    Both files have two columns separated by a tab, and no header.

    Args:
        sequences: `user<tab>item item ...`, oldest first.
        titles: `item<tab>title`; titles may be quoted as in CSV.
        images: folder of `<item>.jpg`, an LMDB file, or `None`.
        show_progress: show bars.
    """

    name = "iisan"
    example = "--input=scientific_files --images=am_is.lmdb --output=dataset_atomic/scientific"
    filters = FilterSettings(min_len=5, keep_last=13)

    def __init__(self, sequences: Path, titles: Path, images: Path | None, show_progress: bool):
        self._sequences, self._titles, self._images = sequences, titles, images
        self._show_progress = show_progress

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=Path, required=True, help=f"folder with {SEQUENCES} and {TITLES}")
        parser.add_argument("--images", type=Path, help="folder of <item>.jpg, or the authors' .lmdb file")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> IISANSource:
        sequences = find_file(arguments["input"], SEQUENCES, "sequences")
        titles = find_file(arguments["input"], TITLES, "titles")
        return cls(sequences, titles, arguments["images"], show_progress)

    def input_files(self) -> list[Path]:
        return [self._sequences, self._titles]

    def events(self) -> Iterator[Events]:
        return batched_events(self._sequences, sequence_rows(self._sequences, self._show_progress))

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        return {"title": titles_by_tab(self._titles)}

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        return {} if self._images is None else images_of(self._images, tokens)

    def expected(self) -> ExpectedCounts:
        found = (counts for word, counts in EXPECTED.items() if word in self._sequences.name)
        return next(found, ExpectedCounts())


def sequence_rows(path: Path, show_progress: bool = False) -> Iterator[tuple[int, str, str]]:
    """Line, user and item of every interaction of a file of `user<tab>item item ...`.

    Raises:
        PerPEFTError: a line has another form, or a user has two lines.
    """
    first_line: dict[str, int] = {}
    for number, line in text_lines(path, show_progress):
        cells = line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        items = cells[-1].split(" ")
        if len(cells) != 2 or not all(items):
            raise line_error(path, number, "not of the form user<tab>item item ..., items separated by one space")
        user = cells[0]
        if first_line.setdefault(user, number) != number:
            raise line_error(path, number, f"the user {user!r} had a line before ({first_line[user]})")
        for item in items:
            yield number, user, item


def titles_by_tab(path: Path) -> dict[str, str]:
    """Title by item of a file of `item<tab>title`; a title that is quoted as in CSV loses its quotes.

    Raises:
        PerPEFTError: a line has another form, or an item has two lines.
    """
    titles: dict[str, str] = {}
    for number, line in text_lines(path):
        if not line.strip():
            continue
        token, tab, title = line.rstrip("\r\n").partition("\t")
        if not tab and set(token) & set(' "'):  # an id alone has no title
            raise line_error(path, number, "not of the form item<tab>title; a title is one line")
        if token in titles:
            raise line_error(path, number, f"the item {token!r} had a line before")
        titles[token] = unquoted(title)
    return titles


def unquoted(cell: str) -> str:
    """A cell without the quotes of CSV; one that merely begins with a quotation mark stays."""
    if not cell.startswith('"'):
        return cell
    try:
        return next(csv.reader([cell], delimiter="\t", strict=True))[0]
    except csv.Error:
        return cell
