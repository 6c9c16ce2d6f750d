"""Anybody's own tables of interactions and items (csv, tsv, jsonl, parquet), with images by folder or column."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.reading.image_files import ImageFile, ImageReference, images_of_folder
from recbole_perpeft.convert.source import Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import path_inside
from recbole_perpeft.core.lines import line_error
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.files.tables import (
    TimeColumn,
    encodable,
    id_text,
    may_lack_columns,
    number,
    table_columns,
    table_rows,
    text_of,
)

TIME = "timestamp"
_TAKEN = frozenset({"user_id", "item_id", "image", "timestamp", "rating"})
_NOT_IN_HEADERS = re.compile(r"[:\x00-\x1f\x7f]")


@dataclass(frozen=True)
class TableColumns:
    """What the columns are called.

    Args:
        user: of the interactions.
        item: of the interactions, and of the items unless `item_of_items` says otherwise.
        time: of the interactions; `None`: `timestamp` if there is such a column, otherwise the order of the file.
        rating: of the interactions; `None` for none.
        item_of_items: id column of the items.
        title: of the items.
        texts: further text columns of the items.
        image: image path of the items, relative to the image folder; `None`: images are named after item ids.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None
    item_of_items: str | None = None
    title: str = "title"
    texts: tuple[str, ...] = ()
    image: str | None = None


class TableSource(Source):
    """Tables of interactions and items in csv, tsv, jsonl (also .gz) or parquet.

    Args:
        interactions: a row an interaction, with a header.
        items: a row an item, with a header; `None` if there are no titles.
        images: folder of images; `None` if there are none.
        columns: what the columns are called.
        show_progress: show bars.
    """

    name = "table"
    example = "--input=orders.csv --items=products.csv --images=photos --output=dataset_atomic/shop"

    def __init__(
        self,
        interactions: Path,
        items: Path | None = None,
        images: Path | None = None,
        columns: TableColumns | None = None,
        show_progress: bool = False,
    ):
        self._interactions, self._items, self._images = interactions, items, images
        self._columns = columns or TableColumns()
        self._show_progress = show_progress
        if self._columns.image is not None and (items is None or images is None):
            raise PerPEFTError("--image_column needs --items, which has the column, and --images, the folder")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=Path, required=True, help="table of interactions")
        parser.add_argument("--items", type=Path, help="table of items")
        parser.add_argument("--images", type=Path, help="folder of images, by default named <item id>.jpg (png, webp)")
        parser.add_argument("--user_column", default="user_id", help="%(default)s")
        parser.add_argument("--item_column", default="item_id", help="%(default)s")
        parser.add_argument("--time_column", help=f"numbers or ISO dates; {TIME} if it is there, or the file's order")
        parser.add_argument("--rating_column", help="numbers; by default ratings are left out")
        parser.add_argument("--items_item_column", help="id column of the items if it has another name there")
        parser.add_argument("--title_column", default="title", help="%(default)s")
        parser.add_argument("--text_columns", nargs="*", default=[], help="further texts of the items to keep")
        parser.add_argument("--image_column", help="path of an item's image relative to --images")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> TableSource:
        columns = TableColumns(
            user=arguments["user_column"],
            item=arguments["item_column"],
            time=arguments["time_column"],
            rating=arguments["rating_column"],
            item_of_items=arguments["items_item_column"],
            title=arguments["title_column"],
            texts=_other_texts(arguments["title_column"], arguments["text_columns"]),
            image=arguments["image_column"],
        )
        return cls(arguments["input"], arguments["items"], arguments["images"], columns, show_progress)

    def input_files(self) -> list[Path]:
        return [path for path in (self._interactions, self._items) if path is not None]

    def events(self) -> Iterator[Events]:
        return batched_events(self._interactions, self._event_rows())

    def _event_rows(self) -> Iterator[tuple]:
        path, columns = self._interactions, self._columns
        has_times = columns.time is not None or TIME in table_columns(path)
        if not has_times:
            LOGGER.info(f"{path}: no column {TIME}; the order of the rows is taken for that of time")
        # Of rows that may leave columns out, the first does not tell what the others have.
        time = columns.time or (TIME if has_times or may_lack_columns(path) else None)
        optional = [name for name in (time, columns.rating) if name is not None]
        times = TimeColumn(path)
        for line, (user, item, *rest) in table_rows(
            path, [columns.user, columns.item, *optional], self._show_progress
        ):
            if not has_times and time is not None and rest[0] is not None:
                raise line_error(path, line, f"has a {TIME}, which the first row lacks; give all rows one, or none")
            yield (
                line,
                id_text(path, line, user),
                id_text(path, line, item),
                times.seconds(line, rest[0]) if has_times else None,
                None if columns.rating is None else number(path, line, rest[-1], "rating"),
            )

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        columns = self._columns
        texts: dict[str, dict[str, str]] = {name: {} for name in ("title", *columns.texts)}
        if self._items is None:
            return texts
        for line, token, cells in self._wanted_rows(self._items, [columns.title, *columns.texts], tokens):
            if token in texts["title"]:
                raise line_error(self._items, line, f"the item {token!r} had a row before")
            for name, cell in zip(texts, cells, strict=True):
                texts[name][token] = text_of(self._items, line, cell, name)
        return texts

    def images(self, tokens: Sequence[str]) -> dict[str, ImageReference]:
        if self._images is None:
            return {}
        if self._items is None or self._columns.image is None:
            return images_of_folder(self._images, tokens)
        references: dict[str, ImageReference] = {}
        for line, token, (given,) in self._wanted_rows(self._items, [self._columns.image], tokens):
            if path := text_of(self._items, line, given, self._columns.image):
                path = encodable(self._items, line, path, self._columns.image)
                references[token] = ImageFile(_inside(self._images, path, self._items, line))
        return {token: references[token] for token in tokens if token in references}

    def _wanted_rows(
        self, path: Path, names: list[str], tokens: Sequence[str]
    ) -> Iterator[tuple[int, str, list[Any]]]:
        """Line, id and cells of the rows of some items.

        Raises:
            PerPEFTError: none of them has a row, or no row has one of the columns.
        """
        item, wanted = self._columns.item_of_items or self._columns.item, set(tokens)
        is_known, unseen = False, set(names) - {TableColumns.title}  # photos may be all that there is
        for line, (given, *cells) in table_rows(path, [item, *names]):
            if unseen:
                unseen -= {name for name, cell in zip(names, cells, strict=True) if cell is not None}
            token = id_text(path, line, given)
            if token in wanted:
                is_known = True
                yield line, token, cells
        if wanted and not is_known:
            raise PerPEFTError(
                f"{path}: no {item} is that of an item of {self._interactions}, as {min(wanted)!r} is; write ids "
                "alike in both, or name another --items_item_column"
            )
        if unseen and may_lack_columns(path):
            raise PerPEFTError(f"{path}: no row has {min(unseen)!r}; name a column that is there")


def _inside(folder: Path, given: str, table: Path, line: int) -> Path:
    """A path that a line of a table gives relative to a folder; its file may have another form of Unicode."""
    path_inside(folder, given, f"{table}, line {line}")
    forms = (given, *(unicodedata.normalize(form, given) for form in ("NFC", "NFD")))
    paths = [folder / form for form in dict.fromkeys(forms)]
    return next((path for path in paths[1:] if path.is_file()), paths[0])


def _other_texts(title_column: str, text_columns: Sequence[str]) -> tuple[str, ...]:
    """Further columns of texts, each once; titles are written as `title`, whatever their column is called."""
    for name in text_columns:
        if name in _TAKEN or not name.strip() or _NOT_IN_HEADERS.search(name):
            raise PerPEFTError(
                f"--text_columns names {name!r}, which no column of an item file can be called beside "
                f"{', '.join(sorted(_TAKEN))}, and without ':' and breaks; rename it in the table"
            )
    if "title" in text_columns and title_column != "title":
        raise PerPEFTError(
            f"--text_columns names title, which the titles from the column {title_column} are called: leave it out"
        )
    return tuple(name for name in dict.fromkeys(text_columns) if name != "title")
