"""Checks of an interaction log as it is read, its order, its parts, and what tells two logs apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import FeatureType

from recbole_perpeft.core.digest import columns_digest, numbers_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.protocol import HELD_OUT, places_of_parts
from recbole_perpeft.data.coded import CodedDataset
from recbole_perpeft.data.files.atomic_table import RowLines
from recbole_perpeft.data.files.beside import sums_of
from recbole_perpeft.data.history import PHASES, HistoryIndex, interactions_of
from recbole_perpeft.data.split import (
    LogSplit,
    PartLog,
    RowHistories,
    all_but_last,
    shuffled_within_users,
    split_at_one_time,
)

N_SHOWN = 10
_FILTERS = ("rm_dup_inter", "val_interval", "user_inter_num_interval", "item_inter_num_interval")


class CheckedLog(CodedDataset):
    """Base of data set classes of RecBole: what RecBole would do in silence is an error, or not done.

    RecBole takes quotation marks for those of cells, in which it swallows rows, leaves out rows without a user or an
    item, puts the mean of all times where a time is missing, and compares times after rounding.

    Attributes:
        fingerprint: identifies the ids (which token has which number: what a trained model depends on) and the log
            after filtering (what continuing a training depends on), by the names `ids` and `log`.
        phase_history: in the parts of a sequential data set, the interactions that the part stands for; else None.
        row_histories: in the valid and test part of a split at one time, what each row's user had before; else None.
        row_targets: in such a part, the targets of each row, by row number; None where every row has one.
    """

    fingerprint: dict[str, str]
    file_size_list: Any  # rows of each part, where the parts are files
    phase_history: HistoryIndex | None = None
    row_histories: RowHistories | None = None
    row_targets: HistoryIndex | None = None
    _split: LogSplit | None = None
    inter_feat: Any  # a table of pandas, and from `_change_feat_format` on RecBole's Interaction

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        self._log_lines = []
        super()._load_inter_feat(token, dataset_path)
        _check_log(self, self._log_lines)
        del self._log_lines
        if self.benchmark_filename_list is not None:
            sizes = np.zeros(len(PHASES), dtype=np.int64)
            sizes[list(places_of_parts(self.benchmark_filename_list))] = self.file_size_list
            self.file_size_list = sizes
            ignored = [name for name in _FILTERS if self.config[name] not in (None, "[0,inf)")]
            if ignored:
                LOGGER.warning(
                    f"the parts of benchmark_filename stay as they are: {', '.join(ignored)} is not applied"
                )

    def _filter_inter_by_user_or_item(self) -> None:
        before = len(self.inter_feat)
        super()._filter_inter_by_user_or_item()
        if n_lost := before - len(self.inter_feat):
            LOGGER.warning(
                f"{n_lost} of {before} interactions are left out: load_col reads {self.dataset_name}.user or "
                f"{self.dataset_name}.item, where their users or items are not (filter_inter_by_user_or_item)"
            )

    def _remove_duplication(self) -> None:
        keep, has_times = self.config["rm_dup_inter"], self.time_field in self.inter_feat
        if keep is None or not has_times:
            super()._remove_duplication()
            return
        self._sort_by_time()
        self.inter_feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep, inplace=True)

    def _change_feat_format(self) -> None:
        if self.config["eval_args"]["order"] == "TO" or self._is_sequential:
            self._sort_by_time()
        if self.config["shuffle_histories"]:
            self._shuffle_histories(self.inter_feat)
        log = self.inter_feat
        self._split = self._split_of_rows(log)
        if self._split is not None:
            self._part_of_row = self._split.part
        whole: Any = self
        # RecBole's sequential data set would make rows here, before the log has parts.
        cut_later = self._split is not None and self._is_sequential
        base: Any = super(SequentialDataset, whole) if cut_later else super()
        base._change_feat_format()
        arguments = self.config["eval_args"]
        if (
            self._is_sequential
            and not cut_later
            and "RS" in arguments["split"]
            and arguments["group_by"] in (None, "none")
        ):
            self._order_sequences(log[self.uid_field].to_numpy(), log[self.time_field].to_numpy())

    def _shuffle_histories(self, log: pd.DataFrame) -> None:
        """Gives every user's train rows another order in time; users, times and the rows that are tested stay."""
        (kind, how), *_ = self.config["eval_args"]["split"].items()
        if self.benchmark_filename_list is not None or kind not in ("LS", "GT"):
            raise PerPEFTError("shuffle_histories needs a split {LS: ...} or {GT: ...} in eval_args")
        split, users = self._split_of_rows(log), log[self.uid_field].to_numpy()
        n_kept = 2 if self._is_sequential else 1
        is_train = all_but_last(users, len(HELD_OUT[how]), n_kept) if split is None else split.part == 0
        order = shuffled_within_users(users, is_train, self.config["seed"])
        self.inter_feat = log.iloc[order].reset_index(drop=True).assign(**{self.time_field: log[self.time_field]})

    def _split_of_rows(self, log: pd.DataFrame) -> LogSplit | None:
        """The part of every row of the sorted log, where it is not RecBole that makes the parts."""
        arguments = self.config["eval_args"]
        if self.benchmark_filename_list is not None or "GT" not in arguments["split"]:
            return None
        users, times = log[self.uid_field].to_numpy(), log[self.time_field].to_numpy()
        return split_at_one_time(arguments, users, times, self.dataset_name)

    def _order_sequences(self, users: np.ndarray, times: np.ndarray) -> None:
        """Puts RecBole's rows of sequences, which are in the order of users, into that of exact times.

        A split of all users at one time cuts there; RecBole's own order is by rounded times, and then by users.

        Args:
            users: of the sorted log, int64 [n].
            times: of the sorted log, float64 [n].
        """
        if self.benchmark_filename_list is not None:
            return
        by_user = np.argsort(users, kind="stable")
        is_target = np.diff(users[by_user], prepend=-1) == 0
        self.inter_feat = self.inter_feat[np.argsort(times[by_user][is_target], kind="stable")]

    def _sort_by_time(self) -> None:
        """Exact times decide, and where they are equal the order of the file.

        RecBole turns times into float32, in which Unix times up to two minutes apart are equal, before it sorts the
        log; it keeps the order of rows that it takes for equal. Where the parts of the log are files, they follow each
        other, but for sequential models, whose histories run across them.
        """
        has_parts = self.benchmark_filename_list is not None
        if self.time_field not in self.inter_feat:
            if has_parts and not self._has_parts_of_sequences:
                return
            raise PerPEFTError(
                f"{self.dataset_name}.inter has no column {self.time_field!r}: add it as {self.time_field}:float, "
                "list it in load_col, or name another column as TIME_FIELD."
            )
        times = self.inter_feat[self.time_field].to_numpy()
        if not has_parts and (times[1:] >= times[:-1]).all():
            self.inter_feat.reset_index(drop=True, inplace=True)  # a long log is neither sorted nor copied in vain
            return
        order = np.argsort(times, kind="stable")
        if has_parts:
            part = np.repeat(np.arange(len(PHASES)), self.file_size_list)
            if not self._has_parts_of_sequences:
                order = np.lexsort((times, part))
            self._part_of_row = part[order]
        self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)

    @property
    def _is_sequential(self) -> bool:
        return isinstance(self, SequentialDataset)

    @property
    def _has_parts_of_sequences(self) -> bool:
        """Whether the parts are files of interactions, of which rows of sequences are to be made."""
        lists = self.iid_field + self.config["LIST_SUFFIX"]
        return self.benchmark_filename_list is not None and self._is_sequential and lists not in self.inter_feat

    def _benchmark_presets(self) -> None:
        if not self._has_parts_of_sequences:
            super()._benchmark_presets()

    def build(self) -> list[CheckedLog]:
        """As RecBole does it; of parts that are files, sequences that run across them.

        Returns:
            Train, valid and test data set.

        Raises:
            PerPEFTError: sequences without an order in time, or no user has two train rows.
        """
        self._check_order()
        if self._has_parts_of_sequences:
            self._change_feat_format()
            return self._sequences_of_parts()
        if "GT" in self.config["eval_args"]["split"] and self.benchmark_filename_list is None:
            self._change_feat_format()
            return self._sequences_of_parts() if self._is_sequential else self._rows_of_parts()
        parts = super().build()
        if self._is_sequential:
            for part, (users, items) in zip(parts, interactions_of(parts), strict=True):
                part.phase_history = HistoryIndex.from_pairs(users, items, self.user_num)
        return parts

    def _check_order(self) -> None:
        order = self.config["eval_args"]["order"]
        if self._is_sequential and order != "TO":
            raise PerPEFTError(f"Sequences need time order: set eval_args.order to TO, not to {order}.")

    def _sequences_of_parts(self) -> list[CheckedLog]:
        """RecBole's rows of sequences: a target and the items before it."""
        log = self.inter_feat
        parts: list[CheckedLog] = []
        for of_part in self._part_logs():
            part = parts[0].copy(parts[0].inter_feat[:0]) if parts else self
            if of_part.is_row.any():
                part = self.copy(log[of_part.rows])
                part.data_augmentation()
                part.inter_feat = part.inter_feat[of_part.is_row[~of_part.is_first]]
                part._drop_unused_col()
            parts.append(self._with_history(part, of_part, log))
        return parts

    def _rows_of_parts(self) -> list[CheckedLog]:
        """RecBole's rows of other models: train interactions, and those that are targets."""
        log = self.inter_feat
        self._drop_unused_col()
        return [
            self._with_history(self.copy(log[part.rows[part.is_row if part.place else part.of_part]]), part, log)
            for part in self._part_logs()
        ]

    def _with_history(self, part: CheckedLog, of_part: PartLog, log: Any) -> CheckedLog:
        """A part that stands for rows of the log."""
        users, items = (log[field].numpy()[of_part.rows] for field in (self.uid_field, self.iid_field))
        of_it = of_part.of_part
        part.phase_history = HistoryIndex.from_pairs(users[of_it], items[of_it], self.user_num)
        if of_part.place and self._split is not None and self._split.at_one_time:
            part.row_histories = of_part.row_histories(users, items, self.user_num)
            part.row_targets = of_part.row_targets(items)
        return part

    def _part_logs(self) -> Iterator[PartLog]:
        """The log of each part: no part knows of a later one, whatever its times.

        Raises:
            PerPEFTError: no user has two train rows.
        """
        users = self.inter_feat[self.uid_field].numpy()
        for place, name in enumerate(PHASES):
            rows = np.flatnonzero(self._part_of_row <= place)
            rows = rows[np.argsort(users[rows], kind="stable")]
            is_first = np.diff(users[rows], prepend=-1) != 0
            of_part = self._part_of_row[rows] == place
            if not place and is_first.all():
                raise PerPEFTError(f"no user has two rows in the train part of {self.dataset_name}: nothing to learn")
            n_lost = int((is_first & of_part).sum())
            if place and n_lost and self._split is None:
                LOGGER.warning(
                    f"{n_lost} row(s) of the {name} part are the first of their users: without a history, they are no "
                    "targets of a sequential model"
                )
            is_row = is_target = of_part & ~is_first
            if place and self._split is not None:
                is_row, is_target = (of_part & chosen[rows] for chosen in (self._split.is_row, self._split.is_target))
            yield PartLog(place, rows, is_first, of_part, is_row, is_target)

    def counter(self, field: str) -> Counter:
        """Occurrences of each id of a field; of users and items in all interactions that a part stands for.

        RecBole's rows of sequences have no row for a user's first interaction.
        """
        if self.phase_history is None or field not in (self.uid_field, self.iid_field):
            return super().counter(field)
        users, items = self.phase_history.pairs()
        ids, occurrences = np.unique(users if field == self.uid_field else items, return_counts=True)
        return Counter(dict(zip(ids.tolist(), occurrences.tolist(), strict=True)))

    def _data_processing(self) -> None:
        super()._data_processing()
        self._log = None
        self.fingerprint = self._fingerprints()

    def _fingerprints(self) -> dict[str, str]:
        """Hashes of ids and log; of a kept log they are kept too, and what they are of is told apart by checksums."""
        if self._beside is None:
            return {"ids": _hash_of_ids(self), "log": numbers_hash(self.inter_feat)}
        names = {field: self.field2id_token[field] for field in (self.uid_field, self.iid_field)}
        numbers = {
            str(name): column.to_numpy() for name, column in self.inter_feat.items() if column.dtype.kind in "iuf"
        }
        return {
            "ids": self._beside.text_of("hash_of_ids", sums_of(names), lambda: _hash_of_ids(self)),
            "log": self._beside.text_of("hash_of_log", sums_of(numbers), lambda: numbers_hash(self.inter_feat)),
        }


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


def _check_log(dataset: Dataset, lines: list[tuple[Path, RowLines]]) -> None:
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


def _check_file(dataset: Dataset, rows: pd.DataFrame, path: Path, lines: RowLines) -> None:
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


def _check_rows(wrong: pd.Series, lines: RowLines, what: str, remedy: str, file: Path) -> None:
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
