"""The mean gradient of a step of several batches, whichever processes have computed them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from recbole_perpeft.nn.adapt.groups import owned_by_groups
from recbole_perpeft.training.workers import Workers


class MeanGradient:
    """Adds up gradients of batches, and puts their mean into the parameters.

    What all groups of users share gets the mean over the batches of the step. What one group owns gets the mean over
    the batches that are of this group. A parameter that no batch reaches has no gradient at all: an optimiser leaves
    it as it is, without weight decay and without a change of its moments.

    Args:
        model: whose modules of groups count by themselves.
        parameters: what is trained, in an order that is the same in all processes.
        workers: the processes.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], workers: Workers) -> None:
        owned = owned_by_groups(model)
        self._parameters = list(parameters)
        self._is_owned = [id(parameter) in owned for parameter in self._parameters]
        self._workers = workers
        self._start()

    def _start(self) -> None:
        self._sums: list[Tensor | None] = [None] * len(self._parameters)
        self._held = torch.zeros(len(self._parameters), dtype=torch.int64)

    def take(self) -> None:
        """Add the gradients of a batch to those before, out of the parameters."""
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            earlier = self._sums[place]
            self._sums[place] = parameter.grad if earlier is None else earlier.add_(parameter.grad)
            self._held[place] += 1
            parameter.grad = None

    def give(self, n_batches: int) -> None:
        """Put the means into the parameters, and begin anew.

        Args:
            n_batches: of the step, those of all processes.
        """
        # The counts stay on the CPU: the device is not waited for. Only what some batch has reached travels.
        self._workers.reduce(self._held)
        counts = self._held.tolist()
        reached = [place for place, count in enumerate(counts) if count]
        sums = [self._sum(place) for place in reached]
        self._start()
        if self._workers.size > 1 and reached:
            whole = torch.cat([one.flatten() for one in sums])
            self._workers.reduce(whole)
            parts = whole.split([one.numel() for one in sums])
            sums = [part.view_as(one) for part, one in zip(parts, sums, strict=True)]
        for place, total in zip(reached, sums, strict=True):
            self._parameters[place].grad = total.div_(counts[place] if self._is_owned[place] else n_batches)

    def _sum(self, place: int) -> Tensor:
        own = self._sums[place]
        return torch.zeros_like(self._parameters[place]) if own is None else own
