"""The mean gradient of a step of several batches, whichever processes have computed them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from recbole_perpeft.nn.adapt.groups import owned_by_groups
from recbole_perpeft.training.optimisers import sparse_tables
from recbole_perpeft.training.workers import Workers


class MeanGradient:
    """Adds up gradients of batches, and puts their mean into the parameters.

    What all groups of users share gets the mean over the batches of the step. What one group owns gets the mean over
    the batches that are of this group. A parameter that no batch reaches has no gradient at all: an optimiser leaves
    it as it is, without weight decay and without a change of its moments. Of a sparse gradient, processes tell each
    other the rows that they have reached.

    Args:
        model: whose modules of groups count by themselves.
        parameters: what is trained, in an order that is the same in all processes.
        workers: the processes.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], workers: Workers) -> None:
        owned, tables = owned_by_groups(model), {id(table) for table in sparse_tables(model)}
        self._parameters = list(parameters)
        self._is_owned = [id(parameter) in owned for parameter in self._parameters]
        self._is_sparse = [id(parameter) in tables for parameter in self._parameters]
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
        dense = [place for place in reached if not self._is_sparse[place]]
        totals = dict(zip(dense, self._summed([self._sum(place) for place in dense]), strict=True))
        totals |= {place: self._summed_rows(place) for place in reached if self._is_sparse[place]}
        self._start()
        for place, total in totals.items():
            self._parameters[place].grad = total.div_(counts[place] if self._is_owned[place] else n_batches)

    def _sum(self, place: int) -> Tensor:
        own = self._sums[place]
        return torch.zeros_like(self._parameters[place]) if own is None else own

    def _summed(self, sums: list[Tensor]) -> list[Tensor]:
        """Sums over all processes, which travel as one buffer."""
        if self._workers.size == 1 or not sums:
            return sums
        whole = torch.cat([one.flatten() for one in sums])
        self._workers.reduce(whole)
        parts = whole.split([one.numel() for one in sums])
        return [part.view_as(one) for part, one in zip(parts, sums, strict=True)]

    def _summed_rows(self, place: int) -> Tensor:
        """The sparse sum over all processes, in their order: no process's differs by the rounding of another order."""
        own = self._sums[place]
        own = None if own is None else own.coalesce()
        if self._workers.size == 1 and own is not None:
            return own
        told = self._workers.gather(None if own is None else (own.indices().cpu(), own.values().cpu()))
        parameter = self._parameters[place]
        parts = [
            torch.sparse_coo_tensor(indices, values, size=parameter.shape, check_invariants=False)
            for indices, values in filter(None, told)
        ]
        return reduce(torch.add, parts).coalesce().to(parameter.device)
