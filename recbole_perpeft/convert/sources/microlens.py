"""MicroLens: pairs, titles, covers and captions of short videos (github.com/westlake-repl/MicroLens)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.reading.image_files import ImageReference
from recbole_perpeft.convert.reading.image_lmdb import images_of
from recbole_perpeft.convert.source import ExpectedCounts, Source
from recbole_perpeft.convert.sources.iisan import sequence_rows
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import csv_rows, find_file, line_error
from recbole_perpeft.data.files.tables import number

EXPECTED = {"MicroLens-100k": ExpectedCounts(100_000, 19_738, 719_405)}


class MicroLensSource(Source):
    """MicroLens: pairs (.csv with times, or .tsv), titles, covers, captions.

    Args:
        pairs: `.csv` of user, item and time, or `.tsv` of `user<tab>item item ...` without times.
        titles: `.csv` or `.tsv` of item and title, with or without a header.
        covers: folder of `<item>.jpg` or an LMDB file; `None` for none.
        captions: further texts, in the form of titles, by the name of their column.
        show_progress: show bars.
    """

    name = "microlens"
    example = "--input=MicroLens-100k --images=MicroLens-100k_covers --output=dataset_atomic/microlens"

    def __init__(
        self, pairs: Path, titles: Path, covers: Path | None, captions: dict[str, Path], show_progress: bool = False
    ):
        self._pairs, self._covers = pairs, covers
        self._texts = {"title": titles, **captions}
        self._show_progress = show_progress

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=Path, required=True, help="folder with *_pairs.csv (or .tsv) and *title*")
        parser.add_argument("--pairs", type=Path, help="the file of pairs, if it is another")
        parser.add_argument("--titles", type=Path, help="the file of titles, if it is another")
        parser.add_argument("--images", type=Path, help="folder of <item>.jpg, or the IISAN authors' .lmdb file")
        parser.add_argument("--captions", type=Path, help="file of item and caption, kept as the column caption")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> MicroLensSource:
        folder, captions = arguments["input"], arguments["captions"]
        with_times = any(folder.glob("*_pairs.csv"))
        pairs = arguments["pairs"] or find_file(folder, f"*_pairs.{'csv' if with_times else 'tsv'}", "pairs")
        titles = arguments["titles"] or find_file(folder, "*title*.[ct]sv", "titles")
        return cls(pairs, titles, arguments["images"], {"caption": captions} if captions else {}, show_progress)

    def input_files(self) -> list[Path]:
        return [self._pairs, *self._texts.values()]

    def events(self) -> Iterator[Events]:
        if _delimiter(self._pairs) == "\t":
            return batched_events(self._pairs, sequence_rows(self._pairs, self._show_progress))
        return batched_events(self._pairs, self._timed_rows())

    def _timed_rows(self) -> Iterator[tuple[int, str, str, float]]:
        for line, row in csv_rows(self._pairs, show_progress=self._show_progress):
            if len(row) != 3:
                raise line_error(self._pairs, line, f"{len(row)} cells instead of user, item and time")
            user, item, time = row
            if line == 1 and time.strip()[:1].isalpha() and not user.strip().isdigit():
                continue  # the header
            yield line, user, item, number(self._pairs, line, time, "time")

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        wanted = set(tokens)
        return {name: _texts_of(path, wanted) for name, path in self._texts.items()}

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        return {} if self._covers is None else images_of(self._covers, tokens)

    def expected(self) -> ExpectedCounts:
        found = (counts for name, counts in EXPECTED.items() if self._pairs.name.startswith(name))
        return next(found, ExpectedCounts())


def _delimiter(path: Path) -> str:
    """Tabs in `.tsv` and `.tsv.gz`, commas in all else."""
    return "\t" if ".tsv" in path.suffixes[-2:] else ","


def _texts_of(path: Path, wanted: set[str]) -> dict[str, str]:
    """Text by item of a file of item and text. A header is no wanted item; a line may have no text."""
    texts: dict[str, str] = {}
    for line, row in csv_rows(path, _delimiter(path)):
        if len(row) > 2:
            raise line_error(path, line, f"{len(row)} cells instead of item and text; quote texts with delimiters")
        if row[0] not in wanted:
            continue
        if row[0] in texts:
            raise line_error(path, line, f"the item {row[0]!r} had a line before")
        texts[row[0]] = row[1] if len(row) == 2 else ""
    if wanted and not texts:
        raise PerPEFTError(
            f"{path}: no line begins with an item of the pairs, as {min(wanted)!r} is; is it another file?"
        )
    return texts
