"""Explanations: a side file in which users say why they bought an item.

`<name>.explanations.jsonl` beside the atomic files has a JSON object a line with the texts `user_id`, `item_id`,
`explanation` and, where templates use them, the number `rating` (1 to 5) and the texts `feature` (the word that it is
about) and `headline`. Other fields are ignored.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.data.files.json_lines import json_tables

SUFFIX = "explanations.jsonl"
_REQUIRED = ("user_id", "item_id", "explanation")
_TEXTS = ("feature", "headline", "explanation")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in dict.fromkeys((*_REQUIRED, *_TEXTS))] + [("rating", pa.float64())]
)


def read_explanations(path: Path, user_ids: Mapping[str, int], item_ids: Mapping[str, int]) -> pd.DataFrame:
    """The side file with RecBole's ids.

    Args:
        path: The file.
        user_ids: Id of every user token.
        item_ids: Id of every item token.

    Returns:
        Columns `user_id` and `item_id` (ids), `explanation`, and those of `rating` (float), `feature` and `headline`
        that the file has; a text that a row lacks is empty. Rows keep the order of the file.

    Raises:
        PerPEFTError: The file is missing or damaged, lacks a field, names users or items without interactions, or
            explains the item of a user twice.
    """
    path = Path(path)
    if not path.is_file():
        raise PerPEFTError(f"{path} is missing; write it, or set the task weight of explanation to 0")
    lines, table = _read(path)
    for column in _REQUIRED:
        if table[column].isna().all():
            raise PerPEFTError(f"{path}: no line has the field {column!r}; lines have {', '.join(_REQUIRED)}")
        _refuse(path, lines, table[column].isna(), f"no {column}", "add it")
    rows = pd.DataFrame()
    for column, ids in (("user_id", user_ids), ("item_id", item_ids)):
        what, tokens = column.removesuffix("_id"), table[column]
        rows[column] = tokens.map(ids)
        named = f"the {what} " + tokens.map(repr) + ", which has no interactions"
        _refuse(path, lines, rows[column].isna(), named, "leave such lines out")
        rows[column] = rows[column].astype(np.int64)
    _refuse(path, lines, rows.duplicated(), "an item that its user has explained before", "keep one of the lines")
    for column in _TEXTS:
        if table[column].notna().any():
            rows[column] = table[column].fillna("")
    if table["rating"].notna().any():
        rows["rating"] = table["rating"]
        _refuse(path, lines, ~rows["rating"].between(1, 5), "no rating between 1 and 5", "correct it")
    _refuse(path, lines, rows["explanation"].str.strip() == "", "an empty explanation", "leave such lines out")
    return rows


def _read(path: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Line of every row, and the fields that are known."""
    blocks = list(json_tables(path, _SCHEMA))
    lines = np.concatenate([np.empty(0, dtype=np.int64), *(numbers for numbers, _ in blocks)])
    table = pa.concat_tables([_SCHEMA.empty_table(), *(block for _, block in blocks)])
    return lines, table.to_pandas()


def are_interactions(rows: pd.DataFrame, history: HistoryIndex) -> np.ndarray:
    """Which explanations are of interactions in `history`, bool [n]."""
    users, items = history.pairs()
    n_items = max(int(items.max(initial=0)), int(rows["item_id"].max())) + 1
    keys = rows["user_id"].to_numpy() * n_items + rows["item_id"].to_numpy()
    return np.isin(keys, users * n_items + items)


def _refuse(path: Path, lines: np.ndarray, wrong: pd.Series, what: str | pd.Series, remedy: str) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        first = what if isinstance(what, str) else what.iloc[row]
        raise PerPEFTError(
            f"{path}: {int(wrong.sum())} line(s) cannot be used; line {lines[row]} has {first}; {remedy}"
        )
