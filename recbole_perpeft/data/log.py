"""Checks of an interaction log as it is read, and what tells two logs apart."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import FeatureType

from recbole_perpeft.core.digest import columns_digest, numbers_hash
from recbole_perpeft.core.errors import PerPEFTError

N_SHOWN = 10


class CheckedLog(Dataset):
    """Base of data set classes of RecBole: what RecBole would do in silence is an error, or not done.

    RecBole leaves out rows without a user or an item, puts the mean of all times where a time is missing, and compares
    times after rounding.

    Attributes:
        fingerprint: identifies the ids (which token has which number: what a trained model depends on) and the log
            after filtering (what continuing a training depends on), by the names `ids` and `log`.
    """

    fingerprint: dict[str, str]
    inter_feat: Any  # a table of pandas, and from `_change_feat_format` on RecBole's Interaction

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        _check_log(self, f"{dataset_path}/{token}.inter")

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


def _check_log(dataset: Dataset, file: str) -> None:
    log = dataset.inter_feat
    if log is None or not len(log):
        raise PerPEFTError(f"{file} has no interactions")
    if not isinstance(log.index, pd.RangeIndex):
        raise PerPEFTError(f"{file}: its rows have more columns than line 1 names")
    for field in (dataset.uid_field, dataset.iid_field):
        _check_type(dataset, field, FeatureType.TOKEN, file)
        remedy = "fill in or remove them (words such as NA or null count as empty)"
        _check_rows(dataset, log[field].isna(), f"no {field}", remedy, file)
    if dataset.time_field in log:
        _check_type(dataset, dataset.time_field, FeatureType.FLOAT, file)
        times = log[dataset.time_field]
        _check_rows(dataset, ~np.isfinite(times), f"no finite {dataset.time_field}", "fill in or remove them", file)


def _check_type(dataset: Dataset, field: str, wanted: FeatureType, file: str) -> None:
    if field not in dataset.inter_feat:
        loaded = ", ".join(dataset.inter_feat.columns)
        raise PerPEFTError(f"{file}: the column {field} is not loaded, only {loaded}; add it to load_col: inter")
    if dataset.field2type[field] != wanted:
        found = dataset.field2type[field].value
        raise PerPEFTError(f"{file}, line 1: {field} has the type {found}; it must be {field}:{wanted.value}")


def _check_rows(dataset: Dataset, wrong: pd.Series, what: str, remedy: str, file: str) -> None:
    if not wrong.any():
        return
    rows = np.flatnonzero(wrong)
    # With benchmark_filename the parts follow each other in one table.
    in_one_file = dataset.benchmark_filename_list is None
    shown = ", ".join(str(row + 2 if in_one_file else row + 1) for row in rows[:N_SHOWN])
    place = "line" if in_one_file else "row, counted over all parts,"
    more = ", ..." if len(rows) > N_SHOWN else ""
    raise PerPEFTError(f"{file}: {len(rows)} row(s) have {what}: {place} {shown}{more}; {remedy}")


def _hash_of_ids(dataset: Dataset) -> str:
    """Hash of the tokens of users and items in the order of their ids."""
    fields = (dataset.uid_field, dataset.iid_field)
    return columns_digest(*([str(token) for token in dataset.field2id_token[field]] for field in fields)).hexdigest()
