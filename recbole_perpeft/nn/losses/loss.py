"""What a training loss is: what it asks for, what it gets, and the losses by name."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.sampler import Draws

T = TypeVar("T", bound=type)


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
        negatives: Items drawn for each target, [B, L, `draws.negatives`].
    """

    hidden: Tensor
    inputs: Tensor
    targets: Tensor
    items: Tensor
    vectors: Tensor
    log_popularity: Callable[[float], Tensor]
    negatives: Tensor

    def vectors_of(self, ids: Tensor) -> Tensor:
        """Vectors of items, [..., d] for ids [...]."""
        return vectors_of(ids, self.items, self.vectors)


def vectors_of(ids: Tensor, items: Tensor, vectors: Tensor) -> Tensor:
    """Vectors [..., d] of ids [...] among those of items, [n] ascending and [n, d]."""
    return functional.embedding(torch.searchsorted(items, ids).to(vectors.device), vectors)


class Loss(Protocol):
    """A training loss: a dataclass, with `Settings` as its base, whose fields are settings of the run.

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


_LOSSES: dict[str, type] = {}


def register_loss(name: str) -> Callable[[T], T]:
    """Makes a class the loss of that name, a value of `loss_type`.

    Importing the module that holds the class is enough; a name that is taken is replaced.
    """

    def register(loss_class: T) -> T:
        _LOSSES[name] = loss_class
        return loss_class

    return register


def list_losses() -> list[str]:
    """Names of all losses."""
    return sorted(_LOSSES)


def loss_keys() -> set[str]:
    """Names of the settings of all losses."""
    return {field.name for loss_class in _LOSSES.values() for field in fields(loss_class)}


def loss_from(config: Any) -> Loss:
    """The loss that `loss_type` names, with its settings.

    Raises:
        PerPEFTError: No loss has that name, or a setting of it is wrong.
    """
    name = config["loss_type"]
    if name not in _LOSSES:
        raise PerPEFTError(f"loss_type must be one of {', '.join(list_losses())}, got {name!r}")
    return settings_from(config, _LOSSES[name])
