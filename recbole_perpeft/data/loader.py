"""Train batches of users of one group."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.dataset import SequenceDataset, positive_item_list_field
from recbole_perpeft.data.sampler import Draws, GroupAwareSampler, batch_seed

__all__ = [
    "SequenceTrainDataLoader",
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

    def numbered(
        self, numbers: Iterable[int], epoch: int, resting: Container[int] = ()
    ) -> Iterator[Interaction | None]:
        """Some batches of an epoch. What is drawn for one follows from its number, not from those before it.

        Args:
            numbers: of batches, from 0, as `__iter__` orders them.
            epoch: its number.
            resting: groups whose batches are not made; None stands for them.
        """
        order, starts, ends = self._epoch_order()
        for number in numbers:
            rows = order[starts[number] : ends[number]]
            if int(self._row_group[rows[0]]) in resting:
                yield None
                continue
            if self._sampler is not None:
                self._sampler.set_seed(batch_seed(self._seed, epoch, number))
            yield self._batch(rows)

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
        fields = {field: values[rows].long() for field, values in self._rows.items()}
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
