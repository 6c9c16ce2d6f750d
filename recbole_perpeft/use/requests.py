"""Files of those who ask for lists: users, histories, what is in stock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import line_error
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.files.tables import DELIMITERS, JSON_LINES, PARQUET, TimeColumn, id_text, table_rows
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.use.recommend import People, Recommender

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
_TABLES = (*DELIMITERS, *JSON_LINES, PARQUET)
_SHOWN = 5


class Requests:
    """Reads the files for a recommender.

    Args:
        recommender: Knows users and items.
        skip_unknown: Whether rows with items that it does not know are left out with a warning, or an error.
    """

    def __init__(self, recommender: Recommender, skip_unknown: bool = False) -> None:
        self.recommender, self.skip_unknown = recommender, skip_unknown

    def users(self, given: str) -> People:
        """Users of the log.

        Args:
            given: Tokens with commas between them, or a table with the column `user_id`.

        Raises:
            PerPEFTError: The file cannot be read, or a user is not in the log.
        """
        path = Path(given)
        if path.suffix.lower() not in (*_TABLES, ".gz"):
            return self.recommender.people_of_log(list(dict.fromkeys(given.split(","))))
        tokens, lines = _first_of_each(*_column(path, USER))
        ids = self.recommender.user_ids(tokens)
        if not len(tokens):
            raise PerPEFTError(f"{path} has no rows: nobody to recommend to")
        if not ids.all():
            what = "users that are not in the data set; give their history (--histories) instead"
            raise _unknown(path, tokens, lines, ids == 0, what)
        return self.recommender.people_of_log(tokens)

    def histories(self, path: Path, show_progress: bool = False) -> People:
        """Histories of anybody, in rows of any order.

        Args:
            path: A table with `user_id`, `item_id` and `timestamp`. Rows of equal time keep their order.
            show_progress: Whether to show a bar.

        Raises:
            PerPEFTError: The file cannot be read, a cell is missing, an item is not known, or nobody is left.
        """
        self.recommender.people_of_histories(HistoryIndex(np.zeros(1, np.int64), np.empty(0, np.int64)), [])  # early
        users: list[str] = []
        items: list[str] = []
        times: list[float] = []
        lines: list[int] = []
        column = TimeColumn(path)
        for line, (user, item, time) in table_rows(path, (USER, ITEM, TIME), show_progress):
            users.append(_id(path, line, user, USER))
            items.append(_id(path, line, item, ITEM))
            times.append(column.seconds(line, time))
            lines.append(line)
        ids = self._known_items(path, items, np.asarray(lines))
        codes, names = pd.factorize(np.asarray(users, dtype=object))
        known = ids > 0
        order = np.lexsort((np.asarray(times)[known], codes[known]))
        counts = np.bincount(codes[known], minlength=len(names))
        left = counts > 0
        if not left.any():
            raise PerPEFTError(f"{path} has no item that the model knows: nobody to recommend to")
        if not left.all():
            LOGGER.warning(f"{path}: {(~left).sum()} users have no item that the model knows; they get no list")
        renumbered = np.cumsum(left) - 1
        histories = HistoryIndex.from_pairs(renumbered[codes[known][order]], ids[known][order], int(left.sum()))
        return self.recommender.people_of_histories(histories, names[left])

    def items(self, path: Path) -> list[str]:
        """Items of a table with the column `item_id`.

        Raises:
            PerPEFTError: The file cannot be read, or an item is not known.
        """
        tokens, lines = _column(path, ITEM)
        ids = self._known_items(path, tokens, lines)
        return np.asarray(tokens, dtype=object)[ids > 0].tolist()

    def _known_items(self, path: Path, tokens: Sequence[str], lines: np.ndarray) -> np.ndarray:
        ids = self.recommender.item_ids(tokens)
        if not ids.all():
            error = _unknown(path, tokens, lines, ids == 0, "items that the model does not know")
            if not self.skip_unknown:
                raise PerPEFTError(f"{error}; correct them, or leave them out with --skip_unknown")
            LOGGER.warning(f"{error}; they are left out")
        return ids


def _column(path: Path, name: str) -> tuple[list[str], np.ndarray]:
    """Ids of a column, and their lines."""
    tokens, lines = [], []
    for line, (value,) in table_rows(path, (name,)):
        tokens.append(_id(path, line, value, name))
        lines.append(line)
    return tokens, np.asarray(lines)


def _first_of_each(tokens: list[str], lines: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Each user once, as in a table of orders."""
    firsts = np.flatnonzero(~pd.Series(tokens, dtype=object).duplicated().to_numpy())
    return [tokens[place] for place in firsts], lines[firsts]


def _id(path: Path, line: int, value: object, column: str) -> str:
    if value in (None, ""):
        raise line_error(path, line, f"no {column}; fill it in or remove the row")
    return id_text(path, line, value)


def _unknown(path: Path, tokens: Sequence[str], lines: np.ndarray, unknown: np.ndarray, what: str) -> PerPEFTError:
    places = np.flatnonzero(unknown)
    shown = ", ".join(f"line {lines[place]} ({tokens[place]})" for place in places[:_SHOWN])
    more = ", ..." if len(places) > _SHOWN else ""
    return PerPEFTError(f"{path}: {len(places)} row(s) name {what}: {shown}{more}")
