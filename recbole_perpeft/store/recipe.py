"""What a table is made of, and how: chunks of items, and the recipe that turns them into rows."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recbole_perpeft.core.digest import checksum
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.photos.decode import DECODING
from recbole_perpeft.data.photos.images import digest_of_file
from recbole_perpeft.store.arrays import write_array
from recbole_perpeft.store.rows import Layout, RowFiles

STAMP = "image_stamp"
DECODED = "decoding"  # version of decoding in the values of a table; those of version 1 lack it


@dataclass(frozen=True)
class Chunk:
    """Items of consecutive rows, computed in one go; no texts or no images where they are not asked for."""

    index: int
    start: int
    tokens: list[str]
    texts: list[str]
    image_paths: list[Path | None]
    limits: PhotoLimits = USUAL_LIMITS


@dataclass(frozen=True)
class ComputedChunk:
    """Rows of every array, and why an image cannot be used, by row."""

    index: int
    start: int
    rows: dict[str, np.ndarray]
    damaged: dict[str, str] = field(default_factory=dict)

    def write(self, files: RowFiles) -> "FinishedChunk":
        """Put the rows on the disk."""
        files.write(self.start, self.rows)
        return FinishedChunk(self.index, checksums(self.rows), self.damaged)


@dataclass(frozen=True)
class FinishedChunk:
    """A chunk on the disk, as a line of the journal and an entry of the manifest.

    Attributes:
        index: which chunk.
        checksums: CRC-32 of its rows by array, stamps of images apart. They tell rows that a power failure kept from
            the disk, and rows that were changed later. Version 0.1.0 kept none of pixels and token ids.
        damaged: why an image cannot be used, by row.
    """

    index: int
    checksums: dict[str, int]
    damaged: dict[str, str]

    def is_of(self, rows: dict[str, np.ndarray]) -> bool:
        """Whether these rows are those that were written."""
        found = checksums(rows)
        return all(self.checksums.get(name, value) == value for name, value in found.items())


def checksums(rows: dict[str, np.ndarray]) -> dict[str, int]:
    """CRC-32 of every array but the stamps, which are renewed where identical files were only touched."""
    return {name: checksum([values]) for name, values in rows.items() if name != STAMP}


class Recipe(ABC):
    """What the rows of a table are made of, and how. Every kind of table has a class of its own.

    Attributes:
        format: Kind and version of the table.
        digest: Array that holds a digest of the image of every item.

    Args:
        content: The items.
        field: Field of the items whose changes are told.
        title: What the rows are, for messages.
        about: What the rows depend on besides the content, as JSON holds it.
        chunk_rows: Rows that are computed in one go.
        texts: Text of every item; None where rows do not depend on texts.
        reads_images: Whether rows depend on the images.
    """

    format: ClassVar[str]
    digest: ClassVar[str]

    def __init__(
        self,
        content: ItemContent,
        field: str,
        title: str,
        about: dict[str, Any],
        chunk_rows: int,
        texts: list[str] | None,
        reads_images: bool,
    ) -> None:
        self.content = content
        self.field = field
        self.title = title
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # tuples become lists
        self.chunk_rows = chunk_rows
        self.texts = texts
        self.reads_images = reads_images

    @abstractmethod
    def layout(self, values: dict[str, Any]) -> Layout:
        """Arrays of a table that is described by these values, or of one that is being built, for `about`."""

    @abstractmethod
    def check(self, folder: Path, values: dict[str, Any]) -> None:
        """Look whether a table serves that depends on these values.

        Raises:
            UnusableRowsError: it does not, and may be replaced.
            PerPEFTError: it does not, and belongs to something else.
        """

    def may_replace(self, values: dict[str, Any]) -> bool:
        """Whether rows that are not right any more may be computed again.

        Args:
            values: Of the manifest of their table.
        """
        return True

    @abstractmethod
    def compute(self, files: RowFiles, chunks: list[Chunk]) -> Iterator[FinishedChunk]:
        """Compute chunks and write them, in any order."""

    def finish(self, files: RowFiles, chunks: Sequence[FinishedChunk]) -> dict[str, Any]:
        """What shows when all rows are there, for the manifest. Arrays that the layout then lacks are removed."""
        return {}

    def rows(self, files: RowFiles, values: dict[str, Any], start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows of a table as they were computed."""
        return {name: files.read(name, start, stop) for name in files.layout}

    def marks(self) -> dict[str, np.ndarray]:
        """Arrays, by name, of which a row differs from that of a table if its item has another content now."""
        return {STAMP: self.content.image_stamps()} if self.reads_images else {}

    def chunk(self, index: int) -> Chunk:
        """Items of one chunk."""
        rows, content = slice(*self.range(index)), self.content
        return Chunk(
            index,
            rows.start,
            content.tokens[rows],
            [] if self.texts is None else self.texts[rows],
            content.image_paths[rows] if self.reads_images else [],
            content.limits,
        )

    def range(self, index: int) -> tuple[int, int]:
        """First row of a chunk, and the one after its last."""
        return index * self.chunk_rows, min((index + 1) * self.chunk_rows, len(self.content))

    def is_decoded_as_now(self, values: dict[str, Any]) -> bool:
        """Whether the images of a table with these values were decoded as they would be now."""
        return not self.reads_images or values.get(DECODED) == DECODING

    def changed_rows(
        self, files: RowFiles, values: dict[str, Any], marks: dict[str, np.ndarray], among: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows of a table with these values whose content has changed, or is decoded otherwise now.

        Stamps of images that were only touched or copied are renewed.

        Args:
            files: Of the table.
            values: Of the table.
            marks: As they are now.
            among: The rows that are looked at, bool [n_rows]; all by default.
        """
        is_changed = {name: (files.map(name) != found).any(axis=1) for name, found in marks.items()}
        if STAMP in marks and not self.is_decoded_as_now(values):
            is_changed[STAMP][:] = True
        if among is not None:
            is_changed = {name: found & among for name, found in is_changed.items()}
        if STAMP in marks and is_changed[STAMP].any():
            is_changed[STAMP] = self._renewed_stamps(files, marks[STAMP], is_changed[STAMP])
        return np.flatnonzero(np.any([np.zeros(files.n_rows, dtype=bool), *is_changed.values()], axis=0))

    def _renewed_stamps(self, files: RowFiles, now: np.ndarray, is_suspect: np.ndarray) -> np.ndarray:
        """Which of the suspect images are others, bool [n_rows]."""
        stamps, digests, is_changed = np.array(files.map(STAMP)), files.map(self.digest), is_suspect.copy()
        for row in np.flatnonzero(is_suspect):
            if np.array_equal(digest_of_file(self.content.image_paths[row]), digests[row]):
                stamps[row], is_changed[row] = now[row], False
        if np.array_equal(stamps, files.map(STAMP)):
            return is_changed
        # A folder that may only be read is looked at anew the next time.
        with suppress(PerPEFTError), written_whole(files.path(STAMP)) as draft:
            write_array(draft, stamps)
        return is_changed
