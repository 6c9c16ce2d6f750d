"""Atomic files of a log and its items, in the form that RecBole and `ItemContent` read alike."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_perpeft.convert.events import Log

CHUNK_ROWS = 500_000
_BREAKS = re.compile(r"[\t\r\n\0]+")
_LARGEST_WHOLE = 2**53


def plain_text(text: str, unescape: bool = False) -> str:
    """A title as it can stand in an item file, whose cells are not quoted.

    Tabs and line breaks become spaces, and outer spaces leave. A leading quotation mark becomes two apostrophes:
    RecBole would take it for the start of a quoted cell. What is not Unicode becomes the replacement character.

    Args:
        text: as the source has it.
        unescape: whether HTML entities become characters.
    """
    if unescape:
        text = html.unescape(text)
    text = _BREAKS.sub(" ", text).strip()
    if not text.isascii():  # JSON may hold halves of surrogate pairs
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return "''" + text[1:] if text.startswith('"') else text


@dataclass
class Items:
    """What is known of the items, in the order of their ids.

    Attributes:
        tokens: ids, sorted.
        texts: `title`, and any further text columns, by name; each one text an item.
        images: image file of each item relative to the folder of the data set, empty where it has none.
    """

    tokens: list[str]
    texts: dict[str, list[str]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)

    def n_with_title(self) -> int:
        return sum(map(bool, self.texts["title"]))

    def n_with_image(self) -> int:
        return sum(map(bool, self.images))

    def n_without_content(self) -> int:
        images = self.images or [""] * len(self.tokens)
        return sum(not title and not image for title, image in zip(self.texts["title"], images, strict=True))


def write_interactions(path: Path, log: Log, names: dict[str, pa.Array], ratings: np.ndarray | None = None) -> None:
    """Write an `.inter` file, sorted by user (first appearance in the source), then time.

    Equal times keep the order of the source. RecBole sorts by time with a stable sort, so a user's interactions stay
    in this order even where it holds times in float32. A log without times gets a user's positions from 0 as times.

    Args:
        path: the file.
        log: the interactions.
        names: ids by number, for `user` and `item`.
        ratings: float64 [n], or `None` for no such column.
    """
    order = log.in_time()
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    header += [] if ratings is None else ["rating:float"]
    times = _positions(log, order) if log.times is None else log.times[order]
    with open(path, "wb") as file:
        file.write(("\t".join(header) + "\n").encode())
        for start in range(0, len(log), CHUNK_ROWS):
            part = order[start : start + CHUNK_ROWS]
            cells = [names["user"].take(log.users[part]), names["item"].take(log.items[part])]
            cells.append(_numbers_as_text(times[start : start + CHUNK_ROWS]))
            cells += [] if ratings is None else [_numbers_as_text(ratings[part])]
            file.write(_lines(cells))


def _lines(columns: list[pa.Array]) -> memoryview:
    """Cells of large strings as lines of text."""
    tab, feed, nothing = (pa.scalar(text, pa.large_string()) for text in ("\t", "\n", ""))
    lines = pc.binary_join_element_wise(pc.binary_join_element_wise(*columns, tab), feed, nothing)
    # The bytes of an array of strings lie one after the other.
    return memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()]


def _positions(log: Log, order: np.ndarray) -> np.ndarray:
    counts = np.bincount(log.users)
    return np.arange(len(log)) - np.repeat(np.cumsum(counts) - counts, counts)


def _numbers_as_text(values: np.ndarray) -> pa.Array:
    """Shortest text that reads back as the same number; whole numbers without a point."""
    if np.all(values == np.trunc(values)) and np.all(np.abs(values) < _LARGEST_WHOLE):
        values = values.astype(np.int64)
    return pa.array(values).cast(pa.large_string())


def write_items(path: Path, items: Items) -> None:
    """Write an `.item` file: `item_id`, texts as `token_seq`, and `image` where any item has one."""
    columns: dict[str, Sequence[str]] = {"item_id:token": items.tokens}
    columns |= {f"{name}:token_seq": texts for name, texts in items.texts.items()}
    if any(items.images):
        columns["image:token"] = items.images
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(columns) + "\n")
        for cells in zip(*columns.values(), strict=True):
            file.write("\t".join(cells) + "\n")
