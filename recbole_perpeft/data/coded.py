"""RecBole's data sets with a log whose users and items are numbers from the beginning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.files.atomic_table import AtomicTable, RowLines, TableReader, numbers_in, read_table
from recbole_perpeft.data.files.beside import Beside
from recbole_perpeft.data.files.coded_log import ROWS_AT_ONCE, CodedLog, counts_of, read_coded, taken
from recbole_perpeft.data.files.kept_log import folder_of, kept_log

KEPT_FROM_BYTES = 64 * 2**20  # about 3 million interactions: 8 seconds of reading, half a second of mapping


class CodedDataset(Dataset):
    """Base of data set classes whose log has its tokens as categories.

    Everything of RecBole works with them as with texts, and gives the same. What it does with Python objects or copies
    of a whole log even where nothing leaves it is done with numbers here.
    """

    inter_feat: Any
    feat_name_list: list[str]
    _log_lines: list[tuple[Path, RowLines]]  # of each file of the log, while it is read
    _log: CodedLog | None = None  # of a log that is one file, until its tokens have ids
    _beside: Beside | None = None

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        """Columns of an atomic file; arguments, result and what is noted about columns as in RecBole."""
        wanted, unwanted = self._get_load_and_unload_col(source)
        if wanted == set():
            return None
        path = Path(filepath)
        is_log = source == FeatureSource.INTERACTION
        asked = (
            path,
            lambda name: (wanted is None or name in wanted) and name not in (unwanted or ()),
            self.config["field_separator"],
            self.config["encoding"],
        )
        log = self._coded_log(*asked) if is_log else None
        if self.benchmark_filename_list is None and log is not None:
            self._log, self._beside = log, log.beside
        table = read_table(TableReader(*asked)) if log is None else log.table()
        if not table.types:
            LOGGER.warning(f"no columns of {path} are loaded")
            return None
        if is_log:
            self._log_lines.append((path, table.lines))
        for name, feature_type in table.types.items():
            if source != "link":
                self.field2source[name], self.field2type[name] = source, feature_type
                self.field2bucketnum |= {name: 2} if "float" in feature_type.value else {}
                self.field2seqlen |= {} if feature_type.value.endswith("seq") else {name: 1}
            if feature_type.value.endswith("seq"):
                self._split_cells(path, table, name)
        return table.rows

    def _coded_log(self, path: Path, *how: Any) -> CodedLog:
        """The log of a file, from the folder where it is kept or from its text."""
        keep = self.config["keep_log"] or "never"
        if keep == "always" or (keep == "auto" and path.is_file() and path.stat().st_size >= KEPT_FROM_BYTES):
            reader = TableReader(path, *how)
            log = kept_log(folder_of(Path(self.config["cache_folder"]), path, reader, how[1:]), path, reader)
            if log is not None:
                return log
        return read_coded(TableReader(path, *how))

    def _split_cells(self, path: Path, table: AtomicTable, name: str) -> None:
        """Makes arrays of the cells of a column of sequences, not longer than `seq_len`."""
        separator = self.config["seq_separator"]
        cells = [list(filter(None, text.split(separator))) for text in table.rows[name].fillna("")]
        is_number = table.types[name] == FeatureType.FLOAT_SEQ
        arrays = numbers_in(path, name, cells, table.lines) if is_number else [np.array(cell) for cell in cells]
        longest = max(map(len, arrays), default=0)
        length = (self.config["seq_len"] or {}).get(name, longest)
        table.rows[name] = pd.Series([array[:length] for array in arrays], dtype=object)
        self.field2seqlen[name] = min(length, longest)

    def _filter_nan_user_or_item(self) -> None:
        # The log has been checked: a row without a user or an item is an error.
        of_ids = ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field))
        if any(feat is not None and feat[field].isna().any() for feat, field in of_ids):
            super()._filter_nan_user_or_item()

    def _filter_inter_by_user_or_item(self) -> None:
        of_ids = ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field))
        if not all(feat is None or self.inter_feat[field].isin(feat[field]).all() for feat, field in of_ids):
            super()._filter_inter_by_user_or_item()

    def _filter_by_field_value(self) -> None:
        intervals = self.config["val_interval"] or {}
        masks = [self._within(field, wanted) for field, wanted in intervals.items()]
        known = [mask for mask in masks if mask is not None]
        if not all(mask.all() for mask in known):
            self.inter_feat = _rows_where(self.inter_feat, np.logical_and.reduce(known))
        if len(known) < len(masks):
            super()._filter_by_field_value()

    def _filter_by_inter_num(self) -> None:
        fields, feats = (self.uid_field, self.iid_field), (self.user_feat, self.item_feat)
        wanted = (self.config["user_inter_num_interval"], self.config["item_inter_num_interval"])
        sides = list(zip(fields, feats, wanted, strict=True))
        if all(interval is None or self._all_stay(field, feat, interval) for field, feat, interval in sides):
            return
        if None in fields or not all(_is_coded(self.inter_feat[field]) for field in fields):
            super()._filter_by_inter_num()
            return
        numbers = [_codes(self.inter_feat[field]) for field in fields]
        counted = [_Counted(self, *side) for side in sides]
        stays = np.ones(len(self.inter_feat), dtype=bool)
        while any([each.refuse() for each in counted]):  # both sides are looked at before rows go
            keep = ~np.logical_or(
                *(taken(each.refused, of_rows) for each, of_rows in zip(counted, numbers, strict=True))
            )
            for each, of_rows in zip(counted, numbers, strict=True):
                each.counts -= counts_of(of_rows[~keep], len(each.counts))
            numbers = [of_rows[keep] for of_rows in numbers]
            stays[stays] = keep
        if not stays.all():
            self.inter_feat = _rows_where(self.inter_feat, stays)

    def _all_stay(self, field: str, feat: pd.DataFrame | None, interval: str) -> bool:
        """Whether the filter by numbers of interactions is known to leave everything as it is."""
        intervals = self._parse_intervals_str(interval)
        if not intervals or not _is_coded(self.inter_feat[field]) or (feat is not None and intervals[0][1] > 0):
            return False
        counts = self._counts(field)
        return bool(np.all(self._within_intervals(counts[counts > 0], intervals)))

    def _within(self, field: str, wanted: Any) -> np.ndarray | None:
        """Which rows of the log have a value that is wanted; None where RecBole is to find out."""
        column = self.inter_feat.get(field)
        if column is None or any(feat is not self.inter_feat for feat in self.field2feats(field)):
            return None
        if _is_coded(column):
            return np.asarray(column.isin(wanted))
        intervals = self._parse_intervals_str(wanted) if column.dtype == np.float64 else None
        return np.asarray(self._within_intervals(column.to_numpy(), intervals)) if intervals else None

    def _is_as_read(self, field: str) -> bool:
        """Whether a column of tokens is that of the file: the same memory, which nothing writes to before ids."""
        wanted = self._log.columns.get(field) if self._log is not None else None
        codes = _codes(self.inter_feat[field])
        return wanted is not None and len(codes) == len(wanted) and np.shares_memory(codes, wanted)

    def _counts(self, field: str) -> np.ndarray:
        """Interactions of each category of a column of tokens, int64 [n]."""
        if self._log is not None and self._is_as_read(field):
            return self._log.counts(field)
        column = self.inter_feat[field]
        return counts_of(_codes(column), len(column.cat.categories))

    def _remap(self, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """Gives tokens their ids, by the first appearance in one column after the other, as RecBole does."""
        if not any(_is_coded(feat[field]) for feat, field, _ in remap_list):
            super()._remap(remap_list)
            return
        numbered = [self._numbered(feat, field, kind) for feat, field, kind in remap_list]
        first = numbered[0][1]
        # The tokens of one column are distinct, and in the order of their appearance, already.
        ids, known = (
            pd.factorize(np.concatenate([tokens for _, tokens in numbered]))
            if len(numbered) > 1
            else (np.arange(len(first)), first)
        )
        names = np.array(["[PAD]", *known])
        ends = np.cumsum([len(tokens) for _, tokens in numbered])
        of_log: dict[str, np.ndarray] = {}
        for (feat, field, kind), (places, tokens), end in zip(remap_list, numbered, ends, strict=True):
            of_column = np.append(ids[end - len(tokens) : end] + 1, 0)  # the last is that of a cell without a token
            if field not in self.field2id_token:
                self.field2id_token[field], self.field2token_id[field] = names, _Places(names)
            if kind != FeatureType.TOKEN:
                feat[field] = np.split(of_column[places], np.cumsum(feat[field].agg(len))[:-1])
            elif _is_coded(feat[field]):  # of which the first has its ids in order
                is_first = end == len(tokens)
                of_log[field] = (
                    np.add(places, 1, dtype=np.int32) if is_first else taken(of_column.astype(np.int32), places)
                )
            else:
                feat[field] = of_column[places]
        # To assign a column is to copy it.
        columns = {name: of_log.get(str(name), column) for name, column in self.inter_feat.items()}
        self.inter_feat = pd.DataFrame(columns, index=self.inter_feat.index, copy=False)
        if self._log is not None:
            for field in of_log:
                self._log.columns.pop(field, None)  # pages of a file count as memory while they are mapped

    def _fill_nan(self) -> None:
        names = self.feat_name_list
        if not any(_has_gaps(column) for _, column in self.inter_feat.items()):
            self.feat_name_list = [name for name in names if name != "inter_feat"]
        super()._fill_nan()
        self.feat_name_list = names

    def _numbered(self, feat: pd.DataFrame, field: str, kind: FeatureType) -> tuple[np.ndarray, np.ndarray]:
        """Places of the tokens of a column, -1 where a cell is empty, and the tokens in the order of appearance."""
        if feat is self.inter_feat and _is_coded(feat[field]) and self._is_as_read(field):
            return _codes(feat[field]), feat[field].cat.categories.to_numpy()
        return _numbered(feat[field], kind)

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        narrow = data.columns[data.dtypes == np.int32]
        return super()._dataframe_to_interaction(data.astype(dict.fromkeys(narrow, np.int64), copy=False))


class _Places(Mapping[str, int]):
    """Places of names, which are only looked for where somebody asks: a dictionary of a million is dear.

    Args:
        names: texts, each once.
    """

    def __init__(self, names: np.ndarray) -> None:
        self._names = names

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._names.tolist())}

    def __getitem__(self, name: str) -> int:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._names)


class _Counted:
    """Users or items, of which those with other numbers of interactions than are wanted leave.

    Args:
        dataset: whose log it is.
        field: the column of the log.
        feat: the table of the same users or items; its rows leave too.
        interval: numbers of interactions that stay, as RecBole's settings write them.

    Attributes:
        counts: interactions of each category that are left, int64 [n].
        refused: which categories leave next, bool [n].
    """

    def __init__(self, dataset: CodedDataset, field: str, feat: pd.DataFrame | None, interval: str | None) -> None:
        self._within, self._feat = dataset._within_intervals, feat
        self._intervals = dataset._parse_intervals_str(interval) or []
        if len(self._intervals) > 1:
            LOGGER.warning("More than one interval of interaction number are given!")
        names = dataset.inter_feat[field].cat.categories
        self.counts = np.array(dataset._counts(field))
        self.refused = np.zeros(len(names), dtype=bool)
        self._numbers = None if feat is None else names.get_indexer(feat[field])  # -1: not in the log

    def refuse(self) -> bool:
        """Finds out who leaves, and lets go of their rows in the table; whether there is anybody."""
        self.refused[:] = False
        if not self._intervals:
            return False
        self.refused[:] = (self.counts > 0) & ~self._within(self.counts, self._intervals)
        if self._feat is None or self._numbers is None:
            return bool(self.refused.any())
        # As in RecBole, those of the table need the lower bound of the first interval, whatever the others are.
        numbers, is_there = self._numbers, self._numbers >= 0
        is_low = np.where(is_there, self.counts[numbers], 0) < self._intervals[0][1]
        self.refused[numbers[is_there & is_low]] = True
        leaves = is_low | (is_there & self.refused[numbers])
        self._feat.drop(self._feat.index[leaves], inplace=True)
        self._numbers = numbers[~leaves]
        return bool(self.refused.any() or leaves.any())


def _rows_where(table: pd.DataFrame, mask: np.ndarray) -> pd.DataFrame:
    """Rows of a table, numbered anew; column by column, and without row numbers of 8 bytes."""
    return pd.DataFrame({name: column.array[mask] for name, column in table.items()}, copy=False)


def _has_gaps(column: pd.Series) -> bool:
    """Whether a column may have cells without a value."""
    values = column.to_numpy()
    return values.dtype.kind not in "if" or bool(np.isnan(values.sum()))


def _is_coded(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


def _codes(column: pd.Series) -> np.ndarray:
    """Numbers of the categories of a column, -1 where a cell is empty; not copied."""
    return column.array.codes if _is_coded(column) else np.empty(0, np.int32)


def _numbered(column: pd.Series, kind: FeatureType) -> tuple[np.ndarray, np.ndarray]:
    """Places of the tokens of a column, -1 where a cell is empty, and the tokens in the order of their appearance."""
    if not _is_coded(column):
        return pd.factorize(column.to_numpy() if kind == FeatureType.TOKEN else column.agg(np.concatenate))
    codes, tokens = _codes(column), column.cat.categories.to_numpy()
    if _are_in_order(codes, len(tokens)):
        return codes, tokens
    is_there, places = codes >= 0, np.full(len(codes), -1, dtype=np.int32)
    places[is_there], found = pd.factorize(codes[is_there])
    return places, tokens[found]


def _are_in_order(codes: np.ndarray, n: int) -> bool:
    """Whether all numbers below n appear, and each for the first time after those below it."""
    highest = -1
    for start in range(0, len(codes), ROWS_AT_ONCE):
        part = codes[start : start + ROWS_AT_ONCE]
        so_far = np.maximum.accumulate(np.append(highest, part))
        if (part > so_far[:-1] + 1).any():
            return False
        highest = int(so_far[-1])
    return highest == n - 1
