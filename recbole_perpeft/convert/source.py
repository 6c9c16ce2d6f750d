"""What a source of data has to provide."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from recbole_perpeft.convert.events import Events
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.reading.image_files import ImageReference


@dataclass(frozen=True)
class ExpectedCounts:
    """What a published table says of a data set; `None` where it says nothing."""

    users: int | None = None
    items: int | None = None
    interactions: int | None = None


class Source(ABC):
    """One format of data sets. The constructor takes what its own flags gave, and opens nothing large.

    Attributes:
        name: on the command line.
        example: of its flags, for the help.
        filters: the default filters.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    filters: ClassVar[FilterSettings] = FilterSettings()

    @staticmethod
    @abstractmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the flags that the source has beside those of every source."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> Source:
        """Make a source of its flags.

        Raises:
            PerPEFTError: files are missing or ambiguous.
        """

    @abstractmethod
    def input_files(self) -> list[Path]:
        """The files that are read, image folders apart; their hashes go into the report."""

    def prepare(self, folder: Path) -> None:
        """Unpack what has to be unpacked.

        Args:
            folder: an empty folder for it, which stays until the conversion ends.
        """
        return None

    @abstractmethod
    def events(self) -> Iterator[Events]:
        """All interactions.

        Raises:
            PerPEFTError: a line is damaged.
        """

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        """Texts of items by column, then item id; `title` is always there, items without a text may be missing.

        Args:
            tokens: ids of the items that are wanted; others may be there too.
        """
        return {"title": {}}

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        """Images by item id; items without an image are missing.

        Args:
            tokens: ids of the items that are wanted.
        """
        return {}

    def side_files(self, folder: Path, name: str, tokens: Sequence[str], users: Sequence[str]) -> None:
        """Write what the source has beside interactions and items into the folder of the data set.

        Args:
            folder: where to.
            name: name of the data set.
            tokens: ids of its items.
            users: ids of its users.
        """
        return None

    def expected(self) -> ExpectedCounts:
        """Counts that a published table gives for this data set as it is converted by default."""
        return ExpectedCounts()
