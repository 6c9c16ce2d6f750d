"""What a training loss is: what it asks for, what it gets, and the losses by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.registry import Registry
from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.sampler import Candidates, Draws


@dataclass(frozen=True)
class NextItems:
    """What a loss gets of a batch of B training rows of L slots: users after each slot, and the items that came next.

    Ids stay on the CPU, where they are sorted out without waiting for an accelerator; 0 pads on the left.

    Args:
        hidden: User vectors after each slot, [B, L, d].
        inputs: Items of the slots, [B, L].
        targets: The item after each slot, [B, L]; 0 where none is to be learnt.
        items: Ids of the items below, ascending, [n].
        vectors: Vectors of all these items and others that the loss asked for, [n, d].
        log_popularity: Gives log-probabilities of all items, [n_items], as `in_batch.log_popularity` for an exponent.
        n_items: Number of items, the pad included.
        negatives: Items drawn for each target, [B, L, `draws.negatives`].
        candidates: Items drawn for all targets; None unless `draws.candidates`.
    """

    hidden: Tensor
    inputs: Tensor
    targets: Tensor
    items: Tensor
    vectors: Tensor
    log_popularity: Callable[[float], Tensor]
    n_items: int
    negatives: Tensor
    candidates: Candidates | None = None

    def positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slots with a target: row [P], user vectors [P, d], and target [P]; rows and targets are on the CPU."""
        row, slot = self.targets.nonzero(as_tuple=True)
        place = (row * self.targets.shape[1] + slot).to(self.hidden.device)
        return row, self.hidden.flatten(0, 1).index_select(0, place), self.targets[row, slot]

    def places_of(self, ids: Tensor) -> Tensor:
        """Rows of items in `vectors`."""
        return torch.searchsorted(self.items, ids)

    def vectors_of(self, ids: Tensor) -> Tensor:
        """Vectors of items, [..., d] for ids [...]."""
        return vectors_of(ids, self.items, self.vectors)


def vectors_of(ids: Tensor, items: Tensor, vectors: Tensor) -> Tensor:
    """Vectors [..., d] of ids [...] among those of items, [n] ascending and [n, d]."""
    return functional.embedding(torch.searchsorted(items, ids).to(vectors.device), vectors)


class Loss(Protocol):
    """A training loss: a dataclass with `Settings` as its base, whose fields are settings of the run.

    One that draws negatives names `NegativeSettings` in `settings_classes`, by which the loader draws.

    Attributes:
        draws: What the loader draws for it.
    """

    @property
    def draws(self) -> Draws:
        """What the loader draws for a batch."""
        ...

    def __call__(self, batch: NextItems) -> Tensor:
        """Loss of a batch with a target at least, a scalar."""
        ...


LOSSES: Registry[Any] = Registry(
    "loss_type",
    {
        "bce": "recbole_perpeft.nn.losses.bce:BCELoss",
        "gbce": "recbole_perpeft.nn.losses.gbce:GBCELoss",
        "in_batch": "recbole_perpeft.nn.losses.in_batch:InBatchLoss",
        "sampled_softmax": "recbole_perpeft.nn.losses.sampled_softmax:SampledSoftmaxLoss",
        "softmax": "recbole_perpeft.nn.losses.softmax:SoftmaxLoss",
    },
)
register_loss = LOSSES.register


@dataclass(frozen=True)
class LossChoice(Settings):
    """Which loss."""

    loss_type: str = setting(
        "bce",
        "bce against one sampled negative | gbce: calibrated, against several | sampled_softmax: against items drawn "
        "for the batch | in_batch: debiased, against the batch's items | softmax: over the catalogue.",
        registry=LOSSES,
    )


def loss_from(config: Any) -> Loss:
    """The loss that `loss_type` names, with its settings.

    Raises:
        PerPEFTError: No loss has that name, or a setting of it is wrong.
    """
    return settings_from(config, LOSSES.get(settings_from(config, LossChoice).loss_type))
