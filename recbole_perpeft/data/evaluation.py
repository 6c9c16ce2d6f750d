"""Loaders of evaluations, with a masked history or drawn candidates, of all users or of a sample."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pandas.util import hash_array
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import EvaluatorType, FeatureSource, FeatureType, ModelType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import (
    PHASES,
    HistoryIndex,
    history_of,
    numbers_of_ids,
    ranges,
    rows_of_sample,
    union_of,
)
from recbole_perpeft.data.sampler import GroupAwareSampler

__all__ = ["DrawnCandidatesLoader", "MaskedFullSortEvalDataLoader", "evaluation_loader", "part_of"]

_SCORES_AT_ONCE = 2**27  # of users and all items: 512 MB


def _users_at_once(wanted: int, n_items: int) -> int:
    """How many users make a batch: as many as are wanted, unless there are many items."""
    return max(1, min(wanted, _SCORES_AT_ONCE // n_items))


class MaskedFullSortEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader with a choice of which items leave the candidates, for models of every type.

    RecBole itself masks nothing for sequential models and the history without the targets for the others, which it
    collects in Python sets; here every model has the same candidates and nothing loops over users.

    Args:
        config: RecBole configuration; `mask_history` is one of

            * `all`: items the user had before leave, the target too if he had it before (it then ranks last);
            * `keep_target`: the same, but a target always stays (perpeft.md section 2);
            * `none`: every item stays.
        dataset: valid or test part of `build()` of any data set class.
        sampler: RecBole's sampler of the phase or None; it is not used for a full ranking.
        history: items the users had before the phase (`history_of`); of a split at one time, where what came before
            differs from row to row, the data set's `row_histories` count instead.
        n_users: how many users, drawn by the seed, are evaluated; 0 for all.
    """

    def __init__(self, config, dataset, sampler, history: HistoryIndex, n_users: int = 0) -> None:
        masks = {"all": self._everything, "keep_target": self._all_but_targets, "none": self._nothing}
        self._mask = masks[config["mask_history"]]
        self._history = history
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._row_histories = getattr(dataset, "row_histories", None)
        self._row_targets = getattr(dataset, "row_targets", None)
        of_targets = self.is_sequential or self._row_histories is not None
        self._rows = self._target_rows if of_targets else self._user_rows
        of_rows = dataset.inter_feat[self.uid_field].numpy() if of_targets else self._index_users(dataset).numpy()
        self._chosen = rows_of_sample(of_rows, n_users, config["seed"])
        self.sample_size = len(self._chosen)
        self._users = of_rows
        # RecBole's own constructor of this class is what builds the Python sets: go to its parent's.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    def users_of_rows(self) -> np.ndarray:
        """User of each row that is evaluated, int64 [sample_size]."""
        return self._users[self._chosen]

    def _init_batch_size_and_step(self) -> None:
        # RecBole divides by the number of items for models that score users: often one user a batch.
        self.step = _users_at_once(self.config["eval_batch_size"], self._dataset.item_num)
        self.set_batch_size(self.step)

    def collate_fn(self, index) -> tuple[Interaction, tuple | None, torch.Tensor, torch.Tensor]:
        """Batch of evaluation rows.

        Args:
            index: B row numbers.

        Returns:
            The rows; (row in the batch, item) of every masked candidate or None; row and item of every target.
        """
        index = self._chosen[np.asarray(index)]
        interaction, positive_u, positive_i = self._rows(index)
        if self._row_histories is None:
            history = self._history.rows(interaction[self.uid_field].numpy())
        else:
            history = self._row_histories.rows(index)
        history_u, history_i = map(torch.from_numpy, history)
        masked = self._mask(history_u, history_i, positive_u, positive_i)
        return interaction, masked, positive_u, positive_i

    def _index_users(self, dataset) -> torch.Tensor:
        """Prepares one row a user for models that score users; returns the user of each."""
        users, items = (dataset.inter_feat[field].numpy() for field in (self.uid_field, self.iid_field))
        keys = np.unique(users * dataset.item_num + items)
        self._targets = HistoryIndex.from_pairs(keys // dataset.item_num, keys % dataset.item_num, dataset.user_num)
        self.uid_list = torch.from_numpy(np.flatnonzero(self._targets.lengths))
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        return self.uid_list

    def _user_rows(self, index: np.ndarray) -> tuple[Interaction, torch.Tensor, torch.Tensor]:
        rows = self.user_df[index]
        positive_u, positive_i = self._targets.rows(rows[self.uid_field].numpy())
        return rows, torch.from_numpy(positive_u), torch.from_numpy(positive_i)

    def _target_rows(self, index: np.ndarray) -> tuple[Interaction, torch.Tensor, torch.Tensor]:
        rows = self.transform(self._dataset, self._dataset[index])
        if self._row_targets is None:
            return rows, torch.arange(len(rows)), rows[self.iid_field]
        positive_u, positive_i = map(torch.from_numpy, self._row_targets.rows(index))
        return rows, positive_u, positive_i

    def _everything(self, history_u, history_i, positive_u, positive_i) -> tuple[torch.Tensor, torch.Tensor]:
        return history_u, history_i

    def _all_but_targets(self, history_u, history_i, positive_u, positive_i) -> tuple[torch.Tensor, torch.Tensor]:
        n_items = self._dataset.item_num
        others = ~torch.isin(history_u * n_items + history_i, positive_u * n_items + positive_i)
        return history_u[others], history_i[others]

    def _nothing(self, history_u, history_i, positive_u, positive_i) -> None:
        return None


class DrawnCandidatesLoader(AbstractDataLoader):
    """Targets among items that are drawn, for models of every type alike.

    RecBole draws what the user does not have for models that score users, and anything else for sequential ones. Here
    `mask_history` says it for all: with `all` and `keep_target` nothing is drawn that the user had before, with `none`
    it may be; other targets of the phase are never drawn for their user. With `all`, a target that the user had before
    is no candidate (it then ranks last). What is drawn for a target depends on seed, phase, user and item alone: it is
    the same in every epoch, in batches of any size and among any other users.

    Args:
        config: RecBole configuration; `eval_args.mode` is `uniN` or `popN`: N items a target, drawn alike or by how
            often they occur in the log.
        built_datasets: as for `history_of`.
        phase: "valid" or "test".
        n_users: how many users, drawn by the seed, are evaluated; 0 for all.

    Raises:
        PerPEFTError: a user owns the whole catalogue.
    """

    def __init__(self, config, built_datasets: Sequence, phase: str, n_users: int = 0) -> None:
        place = PHASES.index(phase)
        dataset, n_items = built_datasets[place], built_datasets[place].item_num
        self.uid_field, self.iid_field, self.label_field = dataset.uid_field, dataset.iid_field, config["LABEL_FIELD"]
        dataset.set_field_property(self.label_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        self._seeds = (config["seed"], place)
        arguments = config[f"{phase}_neg_sample_args"]
        self._n_drawn = arguments["sample_num"]
        users, items = (dataset.inter_feat[field].numpy() for field in (self.uid_field, self.iid_field))
        before = getattr(dataset, "row_histories", None)
        is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL or before is not None
        # A sequential model has a list of candidates a target, others one a user, with each of his targets once; of a
        # split at one time all have one a target.
        rows = np.arange(len(users)) if is_sequential else np.unique(users * n_items + items, return_index=True)[1]
        self._targets = rows[np.argsort(users[rows], kind="stable")]
        ordered = users[self._targets]
        is_list = np.full(len(ordered), is_sequential) | (np.diff(ordered, prepend=-1) != 0)
        self._borders = np.append(np.flatnonzero(is_list), len(ordered))
        self._chosen = rows_of_sample(ordered[self._borders[:-1]], n_users, config["seed"])
        self.sample_size = len(self._chosen)
        history = history_of(built_datasets, phase) if before is None else before.of_users()
        history_users, history_items = history.pairs()
        is_ranking = config["eval_type"] == EvaluatorType.RANKING
        owned = history_users * n_items + history_items
        had = np.isin(users * n_items + items, owned) if before is None else before.contain(items)
        is_lost = had & (config["mask_history"] == "all" and is_ranking)
        self._is_candidate = torch.from_numpy(~is_lost)
        if config["mask_history"] != "none":
            users, items = np.concatenate([users, history_users]), np.concatenate([items, history_items])
        self._draws = GroupAwareSampler(
            HistoryIndex.from_pairs(users, items, dataset.user_num),
            n_items,
            arguments["distribution"],
            user_tokens=dataset.field2id_token[self.uid_field],
            item_counts=np.bincount(union_of(built_datasets).items, minlength=n_items),
        )
        super().__init__(config, dataset, None, shuffle=False)

    def _init_batch_size_and_step(self) -> None:
        longest = int(np.diff(self._borders).max(initial=1)) * (1 + self._n_drawn)
        self.step = _users_at_once(self.config["eval_batch_size"] // longest, self._dataset.item_num)
        self.set_batch_size(self.step * longest)

    def collate_fn(self, index) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Batch of lists of candidates.

        Args:
            index: numbers of the lists.

        Returns:
            A row a candidate; the list of each; list and item of every target.
        """
        index = self._chosen[np.asarray(index)]
        lengths = self._borders[index + 1] - self._borders[index]
        rows = torch.from_numpy(self._targets[ranges(self._borders[index], lengths)])
        batch = self.transform(self._dataset, self._dataset[rows])
        targets = batch[self.iid_field]
        users = batch[self.uid_field]
        drawn = self._draws.sample_at(users, self._points(users.numpy(), targets.numpy()))  # [targets, N]
        items = torch.cat([targets.unsqueeze(1), drawn], dim=1)
        label = torch.zeros(items.shape)
        label[:, 0] = 1.0
        stays = torch.ones(items.shape, dtype=torch.bool)
        stays[:, 0] = self._is_candidate[rows]
        of_target = torch.arange(len(targets)).repeat_interleave(items.shape[1])[stays.flatten()]
        candidates = batch[of_target]
        candidates.update(Interaction({self.iid_field: items[stays], self.label_field: label[stays]}))
        of_list = torch.from_numpy(np.repeat(np.arange(len(index)), lengths))
        return self._dataset.join(candidates), of_list[of_target], of_list, targets

    def _points(self, users: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        """Random numbers for each target of a user, int64 [n, N] below 2**62."""
        numbers = numbers_of_ids(self._seeds, users, targets)[:, None] + np.arange(self._n_drawn, dtype=np.uint64)
        return torch.from_numpy((hash_array(numbers.ravel()) >> np.uint64(2)).astype(np.int64)).view(numbers.shape)


def part_of(loader: AbstractDataLoader, numbers: range) -> AbstractDataLoader:
    """An evaluation loader that has some of a loader's batches."""
    part, size = copy.copy(loader), loader.step
    batches = [range(number * size, min((number + 1) * size, loader.sample_size)) for number in numbers]
    vars(part)["batch_sampler"] = batches  # as an attribute, a loader of PyTorch does not let it change
    return part


def rows_of_users(loader: MaskedFullSortEvalDataLoader, wanted: np.ndarray) -> AbstractDataLoader:
    """An evaluation loader that has the rows of some users, each in the batch in which it is among all.

    Args:
        loader: of a model that scores rows of users.
        wanted: whether a user's rows are, bool [n_users].
    """
    part: Any = copy.copy(loader)
    rows = np.flatnonzero(wanted[loader.users_of_rows()])
    borders = np.flatnonzero(np.diff(rows // loader.step)) + 1
    batches = [batch.tolist() for batch in np.split(rows, borders) if len(batch)]
    vars(part)["batch_sampler"] = batches  # as in `part_of`
    return part


def evaluation_loader(config, built_datasets: Sequence, phase: str, n_users: int = 0):
    """Loader of the valid or test part for any model.

    Args:
        config: RecBole configuration; `eval_args.mode` says how a phase ranks: `full`, drawn candidates (`uni100`,
            `pop100` ...), or `labeled` rows as RecBole takes them.
        built_datasets: as for `history_of`.
        phase: "valid" or "test".
        n_users: how many users, drawn by the seed, are evaluated; 0 for all.

    Raises:
        PerPEFTError: rows with labels cannot be drawn by users, have no labels, or are to be ranked.
    """
    mode = config["eval_args"]["mode"][phase]
    dataset = built_datasets[PHASES.index(phase)]
    if mode == "full":
        return MaskedFullSortEvalDataLoader(config, dataset, None, history_of(built_datasets, phase), n_users)
    if mode == "labeled" and n_users:
        raise PerPEFTError(
            f"eval_sample is {n_users}: mode labeled measures rows with labels, not users, as {config['model']} is "
            "evaluated; set eval_sample to 0"
        )
    if mode == "labeled":
        _check_labels(config, dataset)
        return NegSampleEvalDataLoader(config, dataset, None, shuffle=False)
    return DrawnCandidatesLoader(config, built_datasets, phase, n_users)


def _check_labels(config, dataset) -> None:
    label = config["LABEL_FIELD"]
    if config["eval_type"] == EvaluatorType.RANKING:
        raise PerPEFTError(
            "eval_args: mode labeled measures scores of rows, not ranks: set metrics to AUC, LogLoss, MAE or RMSE, or "
            "mode to full"
        )
    if label not in dataset.inter_feat and not getattr(dataset, "is_without_log", False):
        raise PerPEFTError(
            f"eval_args: mode labeled needs labels, and {dataset.dataset_name} has no {label!r}: load that column, or "
            "make it of another one, as threshold: {rating: 4} does"
        )
