"""Lists that another tool made, ranked under the protocol of a comparison as if a model had scored them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.studies.compare.jobs.plan import DataDescription, DatasetPlan, TestRows
from recbole_perpeft.training.rank_metrics import is_rank_metric, metric_of_ranks

_COLUMNS = ("user", "item", "score")
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_ROWS_AT_ONCE = 4096
_NAMED = re.compile(r"(?P<path>.+?)(?:\s+as\s+(?P<name>\S.*))?", re.DOTALL)


@dataclass(frozen=True)
class ListFile:
    """A file of lists.

    Attributes:
        name: what the tables call it.
        path: columns user, item and score, by their names or in this order.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class ListRun:
    """What stands in a comparison for the run of a model: ranks and metrics, without training.

    Attributes:
        folder: the file.
        result: the test metrics that follow from ranks, as `test_result`.
        table: user, item and rank of every test row.
        n_missing: test users who have no list.
    """

    folder: Path
    result: Mapping[str, Any]
    table: pd.DataFrame
    n_missing: int

    def ranks(self) -> pd.DataFrame:
        """As those of a run."""
        return self.table

    def remark(self, name: str) -> str:
        """What a reader must know of the file, in a sentence."""
        missing = f" {self.n_missing:,} test users have no list and count as misses." if self.n_missing else ""
        return f"{name} is the file {self.folder}, made by another tool.{missing}"


def parse_lists(entries: Iterable[str], taken: Iterable[str]) -> list[ListFile]:
    """Files as they are named on the command line: `lists.csv`, or `lists.csv as NAME`.

    Args:
        entries: the files.
        taken: names of the models.

    Raises:
        PerPEFTError: two rows of the tables would have one name.
    """
    names, files = set(taken), []
    for entry in entries:
        found = _NAMED.fullmatch(entry.strip())
        if found is None:
            raise PerPEFTError("--lists names no file: --lists=lists.csv")
        path = Path(found["path"])
        file = ListFile(found["name"] or path.stem, path)
        if file.name in names:
            raise PerPEFTError(f"--lists: {file.name!r} is the name of another row: write `{path} as NAME`")
        names.add(file.name)
        files.append(file)
    return files


def list_run(file: ListFile, plan: DatasetPlan) -> ListRun:
    """Rank a file's lists.

    Args:
        file: the file.
        plan: the comparison on the data set, for whose test rows they are.

    Raises:
        PerPEFTError: the file cannot be read, names a user or an item that the data set does not have, or the protocol
            has no ranks of single targets among all items.
    """
    mode, rows = plan.protocol["eval_args"]["mode"]["test"], plan.description.test_rows
    if mode != "full" or rows is None:
        why = f"candidates are drawn (mode {mode})" if mode != "full" else "users have several test items at once"
        raise PerPEFTError(f"--lists: {why}, so that lists have no ranks; choose mode full and one target a row")
    lists, scores = _read(file.path, plan.description)
    ranks = ranks_of_lists(lists, scores, rows, plan.protocol["mask_history"], len(plan.description.items))
    names = [f"{metric}@{cut}".lower() for metric in plan.protocol["metrics"] for cut in plan.protocol["topk"]]
    metrics = {name: float(metric_of_ranks(name, ranks).mean()) for name in names if is_rank_metric(name)}
    description = plan.description
    columns = {"user": description.users[rows.users], "item": description.items[rows.items], "rank": ranks}
    n_missing = int((lists.lengths[np.unique(rows.users)] == 0).sum())
    return ListRun(file.path, {"test_result": metrics, "best_valid_score": None}, pd.DataFrame(columns), n_missing)


def ranks_of_lists(lists: HistoryIndex, scores: np.ndarray, rows: TestRows, mask: str, n_items: int) -> np.ndarray:
    """Rank of every target, as `training.ranks.target_ranks` counts it.

    Items that are not on a list are behind it, all alike; ties share the middle of their places. A user without a list
    ranks his target last.

    Args:
        lists: items of every user's list.
        scores: of `lists.items`, float64.
        rows: users, targets and what came before.
        mask: `mask_history` of the protocol.
        n_items: size of the catalogue.

    Returns:
        int64 [n_rows].
    """
    parts = [
        _ranks(lists, scores, rows, np.arange(start, min(start + _ROWS_AT_ONCE, len(rows.users))), mask, n_items)
        for start in range(0, len(rows.users), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _ranks(
    lists: HistoryIndex, scores: np.ndarray, rows: TestRows, index: np.ndarray, mask: str, n_items: int
) -> np.ndarray:
    users, targets, n = rows.users[index], rows.items[index], len(index)
    row, items = lists.rows(users)
    score = scores[HistoryIndex(lists.indptr, np.arange(len(scores))).rows(users)[1]]
    is_target = items == targets[row]
    best = np.full(n, -np.inf)
    best[row[is_target]] = score[is_target]
    listed = np.isfinite(best)
    is_candidate = np.ones(len(row), dtype=bool)
    n_candidates = np.full(n, n_items)
    lost = np.zeros(n, dtype=bool)
    if mask != "none":
        masked = np.unique(np.ravel_multi_index(rows.histories.rows(index), (n, n_items)))
        own = np.arange(n) * n_items + targets
        if mask == "keep_target":
            masked = masked[~np.isin(masked, own)]
        is_candidate = ~np.isin(row * n_items + items, masked)
        n_candidates = n_candidates - np.bincount(masked // n_items, minlength=n)
        lost = np.isin(own, masked)
    better = is_candidate & (score > best[row])
    equal = is_candidate & listed[row] & (score == best[row])
    n_better, n_equal, n_listed = (np.bincount(row[chosen], minlength=n) for chosen in (better, equal, is_candidate))
    n_equal = np.where(listed, n_equal, n_candidates - n_listed)
    ranks = 1 + n_better + (n_equal - 1) // 2
    return np.where(lost | (lists.lengths[users] == 0), n_items + 1, ranks)


def _read(path: Path, description: DataDescription) -> tuple[HistoryIndex, np.ndarray]:
    """Lists by the numbers of the description, and the scores of their items."""
    table = _table(path)
    first = 1 if path.suffix == ".parquet" else 2  # the line below the header
    ids = {}
    for name, tokens in (("user", description.users), ("item", description.items)):
        ids[name] = tokens.get_indexer(table[name])
        _check(ids[name] < 0, table, path, first, f"the data set has no {name} {{{name}!r}}")
    scores = pd.to_numeric(table["score"], errors="coerce").to_numpy(dtype=np.float64)
    _check(~np.isfinite(scores), table, path, first, "the score {score!r} is no finite number")
    twice = pd.Series(ids["user"] * len(description.items) + ids["item"]).duplicated().to_numpy()
    _check(twice, table, path, first, "{user!r} has the item {item!r} twice")
    order = np.argsort(ids["user"], kind="stable")
    return HistoryIndex.from_pairs(ids["user"], ids["item"], len(description.users)), scores[order]


def _check(wrong: np.ndarray, table: pd.DataFrame, path: Path, first: int, reason: str) -> None:
    """Refuse a file for its first wrong row; the reason has the names of columns in braces."""
    if wrong.any():
        place = int(np.argmax(wrong))
        what = reason.format(**table.iloc[place].to_dict())
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise PerPEFTError(f"{path}, row {place + first}: {what}{more}; mend or leave out the row")


def _texts(path: Path, separator: str) -> pd.DataFrame:
    """All cells as they are written; a line with a cell too many or too few is an error."""
    how = csv.ParseOptions(delimiter=separator, ignore_empty_lines=False)
    with csv.open_csv(path, parse_options=how) as reader:
        types = dict.fromkeys(reader.schema.names, pa.string())
    return csv.read_csv(path, parse_options=how, convert_options=csv.ConvertOptions(column_types=types)).to_pandas()


def _table(path: Path) -> pd.DataFrame:
    """Columns user, item, score as texts, whatever they are called where there are three."""
    kind = path.suffix.lower()
    if kind != ".parquet" and kind not in _SEPARATORS:
        raise PerPEFTError(f"--lists: {path} is no .csv, .tsv or .parquet file")
    try:
        if kind == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = _texts(path, _SEPARATORS[kind])
    except (OSError, ValueError) as error:
        raise PerPEFTError(f"--lists: cannot read {path}: {' '.join(str(error).split())}") from error
    plain = [str(name).partition(":")[0].strip().lower().removesuffix("_id") for name in table.columns]
    table.columns = plain
    if not set(_COLUMNS) <= set(plain):
        raise PerPEFTError(f"--lists: {path} has the columns {', '.join(plain)}; it must have user, item and score")
    table = table[list(_COLUMNS)]
    return table.astype({"user": str, "item": str})
