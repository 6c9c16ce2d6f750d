"""Checks of an interaction log as it is read, and what tells two logs apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_perpeft.core.digest import columns_digest, numbers_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.atomic_table import AtomicTable, numbers_in, read_table

N_SHOWN = 10


class CheckedLog(Dataset):
    """Base of data set classes of RecBole: what RecBole would do in silence is an error, or not done.

    RecBole takes quotation marks for those of cells, in which it swallows rows, leaves out rows without a user or an
    item, puts the mean of all times where a time is missing, and compares times after rounding.

    Attributes:
        fingerprint: identifies the ids (which token has which number: what a trained model depends on) and the log
            after filtering (what continuing a training depends on), by the names `ids` and `log`.
    """

    fingerprint: dict[str, str]
    inter_feat: Any  # a table of pandas, and from `_change_feat_format` on RecBole's Interaction

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        self._log_lines: list[tuple[Path, np.ndarray]] = []
        super()._load_inter_feat(token, dataset_path)
        _check_log(self, self._log_lines)
        del self._log_lines

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        """Columns of an atomic file; arguments, result and what is noted about columns as in RecBole."""
        wanted, unwanted = self._get_load_and_unload_col(source)
        if wanted == set():
            return None
        path = Path(filepath)
        table = read_table(
            path,
            lambda name: (wanted is None or name in wanted) and name not in (unwanted or ()),
            self.config["field_separator"],
            self.config["encoding"],
        )
        if not table.types:
            LOGGER.warning(f"no columns of {path} are loaded")
            return None
        if source == FeatureSource.INTERACTION:
            self._log_lines.append((path, table.lines))
        for name, feature_type in table.types.items():
            if source != "link":
                self.field2source[name], self.field2type[name] = source, feature_type
                self.field2bucketnum |= {name: 2} if "float" in feature_type.value else {}
                self.field2seqlen |= {} if feature_type.value.endswith("seq") else {name: 1}
            if feature_type.value.endswith("seq"):
                self._split_cells(path, table, name)
        return table.rows

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

    def _remove_duplication(self) -> None:
        keep, has_times = self.config["rm_dup_inter"], self.time_field in self.inter_feat
        if keep is None or not has_times:
            super()._remove_duplication()
            return
        self._sort_by_time()
        self.inter_feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep, inplace=True)

    def _change_feat_format(self) -> None:
        if self.config["eval_args"]["order"] == "TO" or isinstance(self, SequentialDataset):
            self._sort_by_time()
        super()._change_feat_format()

    def _sort_by_time(self) -> None:
        """Exact times decide, and where they are equal the order of the file.

        RecBole turns times into float32, in which Unix times up to two minutes apart are equal, before it sorts the
        log; it keeps the order of rows that it takes for equal.
        """
        if self.time_field in self.inter_feat:
            self.inter_feat = self.inter_feat.sort_values(self.time_field, kind="stable", ignore_index=True)

    def _data_processing(self) -> None:
        super()._data_processing()
        self.fingerprint = {"ids": _hash_of_ids(self), "log": numbers_hash(self.inter_feat)}


@cache
def with_checked_log(dataset_class: type[Dataset]) -> type[Dataset]:
    """A data set class of RecBole with the checks of `CheckedLog`."""
    if issubclass(dataset_class, CheckedLog):
        return dataset_class
    return type(dataset_class.__name__, (CheckedLog, dataset_class), {"__module__": __name__})


def check_same_data(saved: dict[str, str], dataset: CheckedLog, source: Any, names: tuple[str, ...]) -> None:
    """Compare fingerprints.

    Args:
        saved: `CheckedLog.fingerprint` of the data that a checkpoint was trained on; empty if it is not known.
        dataset: the data of now.
        source: the checkpoint, for the message.
        names: which of `ids` and `log` must agree.

    Raises:
        PerPEFTError: they differ.
    """
    if any(saved.get(name, dataset.fingerprint[name]) != dataset.fingerprint[name] for name in names):
        raise PerPEFTError(
            f"{source} was trained on other data: {dataset.dataset_path}/{dataset.dataset_name}.inter, or a filter on "
            "it, has changed since; restore the data, or train anew"
        )


def _check_log(dataset: Dataset, lines: list[tuple[Path, np.ndarray]]) -> None:
    """Checks users, items and times.

    Args:
        dataset: with the log as a table, the rows of several files one after the other.
        lines: of each file, the numbers of the lines of its rows.
    """
    log = dataset.inter_feat
    if log is None or not len(log):
        raise PerPEFTError(
            f"{' and '.join(str(path) for path, _ in lines) or dataset.dataset_path} has no interactions"
        )
    start = 0
    for path, of_rows in lines:
        _check_file(dataset, log.iloc[start : start + len(of_rows)], path, of_rows)
        start += len(of_rows)


def _check_file(dataset: Dataset, rows: pd.DataFrame, path: Path, lines: np.ndarray) -> None:
    for field in (dataset.uid_field, dataset.iid_field):
        _check_type(dataset, field, FeatureType.TOKEN, path)
        remedy = "fill in or remove them (words such as NA or null count as empty)"
        _check_rows(rows[field].isna(), lines, f"no {field}", remedy, path)
    if dataset.time_field in rows:
        _check_type(dataset, dataset.time_field, FeatureType.FLOAT, path)
        times = rows[dataset.time_field]
        _check_rows(~np.isfinite(times), lines, f"no finite {dataset.time_field}", "fill in or remove them", path)


def _check_type(dataset: Dataset, field: str, wanted: FeatureType, file: Path) -> None:
    if field not in dataset.inter_feat:
        loaded = ", ".join(dataset.inter_feat.columns)
        raise PerPEFTError(f"{file}: the column {field} is not loaded, only {loaded}; add it to load_col: inter")
    if dataset.field2type[field] != wanted:
        found = dataset.field2type[field].value
        raise PerPEFTError(f"{file}, line 1: {field} has the type {found}; it must be {field}:{wanted.value}")


def _check_rows(wrong: pd.Series, lines: np.ndarray, what: str, remedy: str, file: Path) -> None:
    if not wrong.any():
        return
    places = lines[np.flatnonzero(wrong)]
    shown = ", ".join(map(str, places[:N_SHOWN]))
    more = ", ..." if len(places) > N_SHOWN else ""
    raise PerPEFTError(f"{file}: {len(places)} row(s) have {what}: line {shown}{more}; {remedy}")


def _hash_of_ids(dataset: Dataset) -> str:
    """Hash of the tokens of users and items in the order of their ids."""
    fields = (dataset.uid_field, dataset.iid_field)
    return columns_digest(*([str(token) for token in dataset.field2id_token[field]] for field in fields)).hexdigest()
