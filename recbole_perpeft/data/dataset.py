"""Interaction logs as sequences: train rows cut from whole histories, evaluation rows as RecBole's leave-one-out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.protocol import HELD_OUT
from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.files.beside import sums_of
from recbole_perpeft.data.files.coded_log import counts_of, taken
from recbole_perpeft.data.history import HistoryIndex, borders, by_user_and_time, history_of, of_ranges, windows
from recbole_perpeft.data.log import CheckedLog
from recbole_perpeft.data.split import LogSplit, split_by_shares

__all__ = ["HistoryIndex", "SequenceDataset", "WindowSettings", "history_of", "positive_item_list_field"]


def positive_item_list_field(config) -> str:
    """Name of the field of train targets, `pos_item_id_list` with RecBole's default names."""
    return "pos_" + config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]


@dataclass(frozen=True)
class WindowSettings(Settings):
    """How a user's train items become train rows."""

    train_windows: Literal["all", "newest"] = setting(
        "all",
        "all: rows over the whole history, each interaction but the first a target once | newest: one row a user.",
    )
    train_overlap: float = setting(
        0.0, "With all: share of a row that repeats earlier items, as context of its first target.", least=0, below=1
    )

    def cut(self, n_targets: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cuts the targets of users, numbered from 0 in time order, into rows, from the end: the first is short.

        Args:
            n_targets: of each user, int64 [n_users], 1 or more.
            width: L, inputs of a row at most, and so its targets.

        Returns:
            Position of the user, first target, border after the last one, and inputs before that of the first target,
            each int64 [n_rows]; users in order, rows of a user in time order.
        """
        n_context = int(self.train_overlap * width)
        step = width - n_context
        n_rows = np.ones_like(n_targets)
        if self.train_windows == "all":
            n_rows += np.maximum(0, -((width - n_targets) // step))
        user = np.repeat(np.arange(len(n_rows)), n_rows)
        age = np.repeat(np.cumsum(n_rows), n_rows) - 1 - np.arange(len(user))  # 0: the user's newest row
        end = n_targets[user] - age * step
        is_oldest = age == n_rows[user] - 1
        start = np.maximum(0, end - np.where(is_oldest, width, step))
        return user, start, end, np.where(is_oldest, 0, n_context)


class SequenceDataset(CheckedLog, SequentialDataset):
    """RecBole's sequential data set with train rows of several targets and a vectorised `build()`.

    By leave-one-out, a user's interactions in time order are split as RecBole does it: the last item is the test
    target, the one before the valid target; a user of three interactions has no valid row, one of two interactions
    only a train row. Interactions of equal time keep the order of the file.

    Rows (item 0 pads on the right, `L = MAX_ITEM_LIST_LENGTH`):

    * train, in order of user ids and time: `user_id`, `item_id_list` [L] (the inputs), `item_length` (how many, 1..L),
      `pos_item_id_list` [L] (the item that follows every input; 0 where an earlier row of the user has that target);
      the lists take 4 bytes an item, and batches have 8;
    * valid and test, in RecBole's order: `user_id`, `item_id_list` [L], `item_length`, `item_id` (the target).

    Parts that are files (`benchmark_filename`) or shares have their rows as targets, and the earlier rows of this part
    and those before it as histories; after one time (`GT`), `eval_args.target` says which rows are targets.
    """

    settings_classes = (WindowSettings,)
    inter_feat: Any  # a table, and after `_change_feat_format` an Interaction

    def build(self) -> list["SequenceDataset"]:
        """Sorts, splits and cuts the log.

        Returns:
            Train, valid and test data set.

        Raises:
            PerPEFTError: if the split is not in time order, the log has no time column, or a user has a single
                interaction, but in a split at one time.
        """
        self._check_order()
        split = self.config["eval_args"]["split"]
        if self._is_sorted_at_once:
            return self._build_at_once()
        self._change_feat_format()
        if self._has_parts_of_sequences:
            return self._build_parts()
        log = self.inter_feat
        counts = np.bincount(log[self.uid_field].numpy(), minlength=self.user_num)
        if "GT" not in split:
            self._check_counts(counts)
        if "LS" not in split:
            return self._build_parts()
        seconds = log[self.time_field].numpy()[borders(counts)[np.flatnonzero(counts)] + 1]
        return self._leave_last_out(log[self.iid_field].numpy(), counts, seconds)

    @property
    def _is_sorted_at_once(self) -> bool:
        """Whether the log is sorted by user and time, with 4 bytes an id, without a sort by time before.

        Only leave-one-out knows all of its parts by the order within users alone.
        """
        log, has_other_rows = self.inter_feat, self.benchmark_filename_list or self.config["shuffle_histories"]
        kinds = {self.uid_field: np.int32, self.iid_field: np.int32, self.time_field: np.float64}
        return (
            "LS" in self.config["eval_args"]["split"]
            and not has_other_rows
            and all(field in log and log[field].dtype == kind for field, kind in kinds.items())
        )

    def _build_at_once(self) -> list["SequenceDataset"]:
        counts, items, seconds = self._in_order()
        users = np.repeat(np.arange(self.user_num, dtype=np.int32), counts)
        self.inter_feat = Interaction(
            {self.uid_field: torch.from_numpy(users), self.iid_field: torch.from_numpy(items)}
        )
        for name in self.feat_name_list:
            if name != "inter_feat":
                setattr(self, name, self._dataframe_to_interaction(getattr(self, name)))
        self._set_row_fields()
        return self._leave_last_out(items, counts, seconds)

    def _in_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Interactions of each user, items by user and time, and what `_leave_last_out` calls seconds.

        What they follow from is told apart by checksums, so that no other filter, order or file has them.
        """
        names = ("user", "item", "time")
        columns = {name: self.inter_feat[field].to_numpy() for name, field in zip(names, self._fields, strict=True)}
        about = [] if self._beside is None else sums_of(columns)

        def kept(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
            return make() if self._beside is None else self._beside.array(name, about, make)

        @cache
        def order() -> np.ndarray:
            return by_user_and_time(columns.pop("user"), columns["time"], self.user_num)

        counts = kept("user_counts", lambda: counts_of(columns["user"], self.user_num))
        self._check_counts(counts)
        self.inter_feat = None  # each column is let go when it has been sorted
        second = borders(counts)[np.flatnonzero(counts)] + 1
        # The times of RecBole's rows have 4 bytes, and those that are equal so keep the order of users.
        seconds = kept("second_times", lambda: columns["time"][order()[second]].astype(np.float32).view(np.int32))
        return counts, kept("items_by_user", lambda: taken(columns["item"], order())), seconds.view(np.float32)

    def _leave_last_out(self, items: np.ndarray, counts: np.ndarray, seconds: np.ndarray) -> list["SequenceDataset"]:
        """Train, valid and test part.

        Args:
            items: of the log by user and time, [n].
            counts: interactions of each user, int64 [n_users].
            seconds: time of the second interaction of each user who has any, float32.
        """
        held_out = HELD_OUT[self.config["eval_args"]["split"]["LS"]]
        users = np.flatnonzero(counts)
        starts = borders(counts)[users]
        n_held_out = np.minimum(len(held_out), counts[users] - 2)
        datasets = {"train": self._train(items, users, starts, starts + counts[users] - n_held_out)}
        # RecBole lists users by the time of their first row, whose target is the second interaction.
        order = np.argsort(seconds, kind="stable")
        targets = starts + counts[users]
        for n_after, phase in enumerate(reversed(held_out)):
            chosen = order[n_held_out[order] > n_after]
            datasets[phase] = self._evaluation(items, users[chosen], starts[chosen], targets[chosen] - 1 - n_after)
        nobody = np.empty(0, dtype=np.int64)
        return [
            datasets[phase] if phase in datasets else self._evaluation(items, nobody, nobody, nobody)
            for phase in ("train", "valid", "test")
        ]

    def _build_parts(self) -> list["SequenceDataset"]:
        """Parts that are told interaction by interaction: files, shares, or before and after one time."""
        self._set_row_fields()
        log = self.inter_feat
        parts: list[SequenceDataset] = []
        for of_part in self._part_logs():
            rows, starts = of_part.rows, np.flatnonzero(of_part.is_first)
            users, items = log[self.uid_field].numpy()[rows], log[self.iid_field].numpy()[rows]
            if not parts:
                ends = np.append(starts[1:], len(rows))
                learns = ends - starts > 1
                part = self._train(items, users[starts[learns]], starts[learns], ends[learns])
            else:
                targets = np.flatnonzero(of_part.is_row)
                starts = starts[np.searchsorted(starts, targets, side="right") - 1]
                part = self._evaluation(items, users[targets], starts, targets)
            parts.append(self._with_history(part, of_part, log))
        return parts

    def _split_of_rows(self, log: Any) -> LogSplit | None:
        arguments = self.config["eval_args"]
        if self.benchmark_filename_list is not None or "RS" not in arguments["split"]:
            return super()._split_of_rows(log)
        users, times = (log[field].to_numpy() for field in (self.uid_field, self.time_field))
        by_user = arguments["group_by"] == "user"
        return split_by_shares(arguments["split"]["RS"], by_user, users, times, self._calcu_split_ids)

    def data_augmentation(self) -> None:
        """Sorts the log, which is in time order, by user. Rows are cut in `build()`; no prefix is copied."""
        order = torch.from_numpy(np.argsort(self.inter_feat[self.uid_field].numpy(), kind="stable"))
        self.inter_feat = Interaction({field: self.inter_feat[field][order] for field in self._fields})
        self._set_row_fields()

    @property
    def _fields(self) -> tuple[str, str, str]:
        return self.uid_field, self.iid_field, self.time_field

    @property
    def interactions(self) -> HistoryIndex:
        """`phase_history` of a part that `build()` made."""
        if self.phase_history is None:
            raise RuntimeError("the data set has no parts yet: call build()")
        return self.phase_history

    @property
    def interactions_in_rows(self) -> HistoryIndex:
        """Those interactions of the train part that its rows hold: with `train_windows: newest` each user's last."""
        history, width = self.interactions, self.max_item_list_len
        if settings_from(self.config, WindowSettings).train_windows == "all":
            return history
        lengths, users = np.minimum(history.lengths, width + 1), history.users
        ends = history.indptr[users + 1]
        return HistoryIndex(borders(lengths), of_ranges(history.items, ends - lengths[users], ends))

    def target_counts(self) -> np.ndarray:
        """Targets of each user in the rows of the train part, int64 [n_users]."""
        per_row = (self.inter_feat[positive_item_list_field(self.config)] != 0).sum(1)
        users = self.inter_feat[self.uid_field]
        return torch.zeros(self.user_num, dtype=torch.int64).index_add_(0, users, per_row).numpy()

    @property
    def avg_actions_of_users(self) -> float:
        """Mean of `user_counter`, which RecBole takes from columns that train rows do not have."""
        return float(np.mean(list(self.user_counter.values())))

    @property
    def avg_actions_of_items(self) -> float:
        """Mean of `item_counter`."""
        return float(np.mean(list(self.item_counter.values())))

    def _check_counts(self, counts: np.ndarray) -> None:
        lonely = np.flatnonzero(counts == 1)
        if len(lonely):
            names = ", ".join(self.id2token(self.uid_field, lonely[:10]))
            raise PerPEFTError(
                f"{self.dataset_name}.inter: {len(lonely)} user(s) with a single interaction, from which nothing can "
                f"be learnt or tested: {names}{', ...' if len(lonely) > 10 else ''}. Leave them out with "
                '--user_inter_num_interval="[2,inf)".'
            )

    def _set_row_fields(self) -> None:
        list_field = self.iid_field + self.config["LIST_SUFFIX"]
        setattr(self, f"{self.iid_field}_list_field", list_field)
        for field in (list_field, positive_item_list_field(self.config)):
            self.set_field_property(field, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, self.max_item_list_len)
        self.set_field_property(self.item_list_length_field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _train(self, items: np.ndarray, users: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> "SequenceDataset":
        """Train part: `items[starts[r]:ends[r]]` are the train items of user `users[r]`."""
        settings, width = settings_from(self.config, WindowSettings), self.max_item_list_len
        row_user, first, end, n_context = settings.cut(ends - starts - 1, width)
        lengths = end - first + n_context
        rows = self._sequence_fields(items, users[row_user], starts[row_user] + end, lengths)
        targets = self._windows(items, starts[row_user] + end + 1, lengths)
        if n_context.any():
            targets[torch.arange(width) < torch.from_numpy(n_context).unsqueeze(1)] = 0
        rows[positive_item_list_field(self.config)] = targets
        part = self.copy(Interaction(rows))
        counts = np.zeros(self.user_num, dtype=np.int64)
        counts[users] = ends - starts
        part.phase_history = HistoryIndex(borders(counts), of_ranges(items, starts, ends))
        return part

    def _evaluation(
        self, items: np.ndarray, users: np.ndarray, starts: np.ndarray, targets: np.ndarray
    ) -> "SequenceDataset":
        """Valid or test part: the target of user `users[r]` is `items[targets[r]]`."""
        rows = self._sequence_fields(items, users, targets, np.minimum(targets - starts, self.max_item_list_len))
        rows[self.iid_field] = torch.from_numpy(items[targets])
        part = self.copy(Interaction({field: values.long() for field, values in rows.items()}))
        part.phase_history = HistoryIndex.from_pairs(users, items[targets], self.user_num)
        return part

    def _sequence_fields(
        self, items: np.ndarray, users: np.ndarray, ends: np.ndarray, lengths: np.ndarray
    ) -> dict[str, torch.Tensor]:
        return {
            self.uid_field: torch.from_numpy(users),
            self.iid_field + self.config["LIST_SUFFIX"]: self._windows(items, ends, lengths),
            self.item_list_length_field: torch.from_numpy(lengths),
        }

    def _windows(self, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(windows(items, ends, lengths, self.max_item_list_len))
