"""Anybody's own tables of interactions and items (csv, tsv, jsonl, parquet), with images by folder or column."""

from __future__ import annotations

import argparse
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
from recbole_perpeft.data.files.tables import id_text, number, seconds, table_columns, table_rows, text_of

TIME = "timestamp"


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
        time = columns.time
        if time is None and TIME in table_columns(path):
            time = TIME
        if time is None:
            LOGGER.info(f"{path}: no column {TIME}; the order of the rows is taken for that of time")
        optional = [name for name in (time, columns.rating) if name is not None]
        for line, (user, item, *rest) in table_rows(
            path, [columns.user, columns.item, *optional], self._show_progress
        ):
            yield (
                line,
                id_text(path, line, user),
                id_text(path, line, item),
                None if time is None else seconds(path, line, rest[0]),
                None if columns.rating is None else number(path, line, rest[-1], "rating"),
            )

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        columns = self._columns
        texts: dict[str, dict[str, str]] = {name: {} for name in ("title", *columns.texts)}
        if self._items is None:
            return texts
        wanted = set(tokens)
        for line, token, cells in self._item_rows(self._items, [columns.title, *columns.texts]):
            if token not in wanted:
                continue
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
        wanted = set(tokens)
        references: dict[str, ImageReference] = {}
        for line, token, (given,) in self._item_rows(self._items, [self._columns.image]):
            if token in wanted and (path := text_of(self._items, line, given, self._columns.image)):
                references[token] = ImageFile(_inside(self._images, path, self._items, line))
        return {token: references[token] for token in tokens if token in references}

    def _item_rows(self, path: Path, names: list[str]) -> Iterator[tuple[int, str, list[Any]]]:
        item = self._columns.item_of_items or self._columns.item
        for line, (token, *cells) in table_rows(path, [item, *names]):
            yield line, id_text(path, line, token), cells


def _inside(folder: Path, given: str, table: Path, line: int) -> Path:
    """A path that a line of a table gives relative to a folder; its file may have another form of Unicode."""
    path_inside(folder, given, f"{table}, line {line}")
    forms = (given, *(unicodedata.normalize(form, given) for form in ("NFC", "NFD")))
    paths = [folder / form for form in dict.fromkeys(forms)]
    return next((path for path in paths[1:] if path.is_file()), paths[0])


def _other_texts(title_column: str, text_columns: Sequence[str]) -> tuple[str, ...]:
    """Further columns of texts, each once; titles are written as `title`, whatever their column is called."""
    if "title" in text_columns and title_column != "title":
        raise PerPEFTError(
            f"--text_columns names title, which the titles from the column {title_column} are called: leave it out"
        )
    return tuple(name for name in dict.fromkeys(text_columns) if name != "title")
