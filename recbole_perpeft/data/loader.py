"""Loaders: train batches of users of one group, evaluation with a masked history."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import EvaluatorType, FeatureSource, FeatureType, ModelType

from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.dataset import SequenceDataset, positive_item_list_field
from recbole_perpeft.data.history import PHASES, HistoryIndex, history_of, ranges, union_of
from recbole_perpeft.data.sampler import Draws, GroupAwareSampler, batch_seed

__all__ = [
    "DrawnCandidatesLoader",
    "MaskedFullSortEvalDataLoader",
    "SequenceTrainDataLoader",
    "evaluation_loader",
    "part_of",
    "train_loader",
]

ONE_NEGATIVE = Draws(negatives=1)


@dataclass(frozen=True)
class NegativeSettings(Settings):
    """How negatives are drawn."""

    negative_distribution: Literal["uniform", "popularity"] = setting("uniform", "uniform | popularity.")
    negative_alpha: float = setting(1.0, "With popularity: exponent of the counts.")


def train_loader(config, dataset: SequenceDataset, draws: Draws = ONE_NEGATIVE) -> "SequenceTrainDataLoader":
    """Loader of the train part with the sampler that the configuration asks for.

    Keys: `train_batch_size`, `seed`, `negative_distribution`, `negative_alpha`, `shuffle`.

    Args:
        config: RecBole configuration.
        dataset: first data set of `SequenceDataset.build()`.
        draws: what is drawn for the loss.

    Raises:
        PerPEFTError: if a value is wrong or a user owns the whole catalogue.
    """
    sampler = _sampler(config, dataset) if draws.negatives or draws.candidates else None
    return SequenceTrainDataLoader(config, dataset, sampler, draws, shuffle=config["shuffle"])


def _sampler(config, dataset: SequenceDataset) -> GroupAwareSampler:
    settings = settings_from(config, NegativeSettings)
    return GroupAwareSampler(
        dataset.interactions,
        dataset.item_num,
        distribution=settings.negative_distribution,
        alpha=settings.negative_alpha,
        seed=config["seed"],
        user_tokens=dataset.field2id_token[dataset.uid_field],
    )


class SequenceTrainDataLoader:
    """Batches of `train_batch_size` train rows with negatives; every row once an epoch.

    Without groups a batch mixes all users. With groups (`set_groups`) all users of a batch belong to one group, so the
    group of a batch is that of its first user, and the batches of all groups come in shuffled order.

    A batch holds `user_id` [B], `item_id_list` [B, L], `item_length` [B], `pos_item_id_list` [B, L] and what is drawn:
    `neg_item_id_list` [B, L], or [B, L, k] for several a target (0 where there is no target), and the fields of
    `Candidates`.

    Args:
        config: RecBole configuration.
        dataset: train part of `SequenceDataset.build()`.
        sampler: of what is drawn; None draws nothing.
        draws: what is drawn.
        shuffle: whether each epoch has its own order.

    Attributes:
        dataset: the train part.
        shuffle: as given.
        batch_size: rows a batch.
    """

    def __init__(
        self,
        config,
        dataset: SequenceDataset,
        sampler: GroupAwareSampler | None,
        draws: Draws = ONE_NEGATIVE,
        shuffle: bool = True,
    ) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.batch_size = config["train_batch_size"]
        self._sampler, self._draws = sampler, draws
        self._rows = dataset.inter_feat.interaction
        self._users = self._rows[dataset.uid_field]
        self._positive_field = positive_item_list_field(config)
        self._negative_field = config["NEG_PREFIX"] + config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        self._seed = config["seed"]
        self._generator = torch.Generator().manual_seed(self._seed)
        self._row_group = np.zeros(len(self._users), dtype=np.int64)

    @property
    def _dataset(self) -> SequenceDataset:
        """The name RecBole's trainers and collector use."""
        return self.dataset

    def set_groups(self, user_group: np.ndarray | torch.Tensor | None, group_negative_ratio: float = 1.0) -> None:
        """From the next epoch on, batches of one group each and negatives from its pool.

        Args:
            user_group: int64 [n_users] group of every user; None goes back to ordinary batches.
            group_negative_ratio: see `GroupAwareSampler.set_groups`.

        Raises:
            PerPEFTError: as `GroupAwareSampler.set_groups`.
        """
        groups = None if user_group is None else np.asarray(torch.as_tensor(user_group).cpu())
        if self._sampler is not None:
            self._sampler.set_groups(groups, group_negative_ratio)
        self._row_group = np.zeros(len(self._users), dtype=np.int64) if groups is None else groups[self._users.numpy()]

    def __len__(self) -> int:
        return int(np.sum(-(-np.bincount(self._row_group) // self.batch_size)))

    def __iter__(self) -> Iterator[Interaction]:
        order, starts, ends = self._epoch_order()
        for start, end in zip(starts, ends, strict=True):
            yield self._batch(order[start:end])

    def numbered(self, numbers: Iterable[int], epoch: int) -> Iterator[Interaction]:
        """Some batches of an epoch. What is drawn for one follows from its number, not from those before it.

        Args:
            numbers: of batches, from 0, as `__iter__` orders them.
            epoch: its number.
        """
        order, starts, ends = self._epoch_order()
        for number in numbers:
            if self._sampler is not None:
                self._sampler.set_seed(batch_seed(self._seed, epoch, number))
            yield self._batch(order[starts[number] : ends[number]])

    def get_state(self) -> dict[str, torch.Tensor]:
        """States of the generators of order and negatives; exact between two epochs."""
        state = {"order": self._generator.get_state()}
        return state if self._sampler is None else state | {"negatives": self._sampler.get_state()}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from a state that `get_state` gave between two epochs."""
        self._generator.set_state(state["order"].cpu())
        if self._sampler is not None:
            self._sampler.set_state(state["negatives"].cpu())

    def _epoch_order(self) -> tuple[torch.Tensor, list[int], list[int]]:
        """Rows of an epoch, group by group, and the borders of its batches in the order in which they come."""
        rows = self._permutation(len(self._users))
        rows = rows[np.argsort(self._row_group[rows], kind="stable")]
        sizes = np.bincount(self._row_group)
        n_batches = -(-sizes // self.batch_size)
        group_ends = np.cumsum(sizes)
        first_batches = np.cumsum(n_batches) - n_batches
        batches = self._permutation(n_batches.sum())
        groups = np.repeat(np.arange(len(sizes)), n_batches)[batches]
        starts = (group_ends - sizes)[groups] + (batches - first_batches[groups]) * self.batch_size
        ends = np.minimum(starts + self.batch_size, group_ends[groups])
        return torch.from_numpy(rows), starts.tolist(), ends.tolist()

    def _permutation(self, n: int) -> np.ndarray:
        return torch.randperm(n, generator=self._generator).numpy() if self.shuffle else np.arange(n)

    def _batch(self, rows: torch.Tensor) -> Interaction:
        fields = {field: values[rows] for field, values in self._rows.items()}
        if self._sampler is not None and self._draws.negatives:
            fields[self._negative_field] = self._negatives(self._sampler, rows, fields[self._positive_field])
        if self._sampler is not None and self._draws.candidates:
            fields |= self._sampler.candidates(self._users[rows], self._draws.candidates).as_fields()
        return Interaction(fields)

    def _negatives(self, sampler: GroupAwareSampler, rows: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
        several = positives.unsqueeze(-1).expand(-1, -1, self._draws.negatives)
        targets = several.squeeze(-1)  # one a target is no dimension of its own
        drawn = sampler.sample(self._users[rows], several[0].numel())
        return drawn.view(targets.shape) * (targets != 0)


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
    """

    def __init__(self, config, dataset, sampler, history: HistoryIndex) -> None:
        masks = {"all": self._everything, "keep_target": self._all_but_targets, "none": self._nothing}
        self._mask = masks[config["mask_history"]]
        self._history = history
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._row_histories = getattr(dataset, "row_histories", None)
        self._row_targets = getattr(dataset, "row_targets", None)
        of_targets = self.is_sequential or self._row_histories is not None
        self._rows = self._target_rows if of_targets else self._user_rows
        self.sample_size = len(dataset) if of_targets else self._index_users(dataset)
        # RecBole's own constructor of this class is what builds the Python sets: go to its parent's.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    def _init_batch_size_and_step(self) -> None:
        # RecBole divides by the number of items for models that score users: often one user a batch.
        self.step = self.config["eval_batch_size"]
        self.set_batch_size(self.step)

    def collate_fn(self, index) -> tuple[Interaction, tuple | None, torch.Tensor, torch.Tensor]:
        """Batch of evaluation rows.

        Args:
            index: B row numbers.

        Returns:
            The rows; (row in the batch, item) of every masked candidate or None; row and item of every target.
        """
        index = np.asarray(index)
        interaction, positive_u, positive_i = self._rows(index)
        if self._row_histories is None:
            history = self._history.rows(interaction[self.uid_field].numpy())
        else:
            history = self._row_histories.rows(index)
        history_u, history_i = map(torch.from_numpy, history)
        masked = self._mask(history_u, history_i, positive_u, positive_i)
        return interaction, masked, positive_u, positive_i

    def _index_users(self, dataset) -> int:
        """Prepares one row a user for models that score users; returns how many."""
        users, items = (dataset.inter_feat[field].numpy() for field in (self.uid_field, self.iid_field))
        keys = np.unique(users * dataset.item_num + items)
        self._targets = HistoryIndex.from_pairs(keys // dataset.item_num, keys % dataset.item_num, dataset.user_num)
        self.uid_list = torch.from_numpy(np.flatnonzero(self._targets.lengths))
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        return len(self.uid_list)

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
    is no candidate (it then ranks last). What is drawn depends on seed and phase: it is the same in every epoch.

    Args:
        config: RecBole configuration; `eval_args.mode` is `uniN` or `popN`: N items a target, drawn alike or by how
            often they occur in the log.
        built_datasets: as for `history_of`.
        phase: "valid" or "test".

    Raises:
        PerPEFTError: a user owns the whole catalogue.
    """

    def __init__(self, config, built_datasets: Sequence, phase: str) -> None:
        place = PHASES.index(phase)
        dataset, n_items = built_datasets[place], built_datasets[place].item_num
        self.uid_field, self.iid_field, self.label_field = dataset.uid_field, dataset.iid_field, config["LABEL_FIELD"]
        dataset.set_field_property(self.label_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        self._seed = (config["seed"], place)
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
        self.sample_size = len(self._borders) - 1
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
        self.step = max(1, self.config["eval_batch_size"] // longest)
        self.set_batch_size(self.step * longest)

    def collate_fn(self, index) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Batch of lists of candidates.

        Args:
            index: numbers of the lists.

        Returns:
            A row a candidate; the list of each; list and item of every target.
        """
        index = np.asarray(index)
        lengths = self._borders[index + 1] - self._borders[index]
        rows = torch.from_numpy(self._targets[ranges(self._borders[index], lengths)])
        batch = self.transform(self._dataset, self._dataset[rows])
        targets = batch[self.iid_field]
        self._draws.set_seed(int(np.random.SeedSequence([*self._seed, int(index[0])]).generate_state(1)[0]))
        drawn = self._draws.sample(batch[self.uid_field], self._n_drawn)  # [targets, N]
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


def part_of(loader: AbstractDataLoader, numbers: range) -> AbstractDataLoader:
    """An evaluation loader that has some of a loader's batches."""
    part, size = copy.copy(loader), loader.step
    batches = [range(number * size, min((number + 1) * size, loader.sample_size)) for number in numbers]
    vars(part)["batch_sampler"] = batches  # as an attribute, a loader of PyTorch does not let it change
    return part


def evaluation_loader(config, built_datasets: Sequence, phase: str):
    """Loader of the valid or test part for any model.

    Args:
        config: RecBole configuration; `eval_args.mode` says how a phase ranks: `full`, drawn candidates (`uni100`,
            `pop100` ...), or `labeled` rows as RecBole takes them.
        built_datasets: as for `history_of`.
        phase: "valid" or "test".
    """
    mode = config["eval_args"]["mode"][phase]
    dataset = built_datasets[PHASES.index(phase)]
    if mode == "full":
        return MaskedFullSortEvalDataLoader(config, dataset, None, history_of(built_datasets, phase))
    if mode == "labeled":
        return NegSampleEvalDataLoader(config, dataset, None, shuffle=False)
    return DrawnCandidatesLoader(config, built_datasets, phase)
