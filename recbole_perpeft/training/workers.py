"""What a training needs of the processes that share it: who it is among them, sums, and what the others have."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import torch
from torch import Tensor, distributed


class Workers(Protocol):
    """The processes of a training, as one of them sees them. All call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process; 0 writes files."""

    @property
    def size(self) -> int:
        """How many there are."""

    def reduce(self, tensor: Tensor) -> None:
        """Put the sum of all processes' tensors of one shape in the place of this one."""

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their numbers; tensors on the CPU and plain types.

        Returns only when all have called it.
        """


@dataclass(frozen=True)
class Alone:
    """One process that trains by itself."""

    rank: int = 0
    size: int = 1

    def reduce(self, tensor: Tensor) -> None:
        """As in `Workers`."""

    def gather(self, value: Any) -> list[Any]:
        """As in `Workers`."""
        return [value]


ALONE = Alone()


class Team:
    """The processes of PyTorch's default group, which must be there: tensors on CPUs and on the devices can be summed.

    What processes tell each other is read as a checkpoint is: it runs no code.
    """

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def reduce(self, tensor: Tensor) -> None:
        """As in `Workers`."""
        distributed.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """As in `Workers`."""
        buffer = BytesIO()
        torch.save(value, buffer)
        own = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(own)]))
        longest = int(max(sizes))
        all_bytes = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(all_bytes, torch.nn.functional.pad(own, (0, longest - len(own))))
        messages = (message[: int(size)].numpy().tobytes() for message, size in zip(all_bytes, sizes, strict=True))
        return [torch.load(BytesIO(message), weights_only=True) for message in messages]


def share_of_steps(n_batches: int, batches_a_step: int, workers: Workers) -> list[range]:
    """Numbers of the batches that a process computes in each step of an epoch.

    The batches of a step follow each other, and the processes take them in turn. The last step may have fewer than
    there are processes; then some have none.

    Args:
        n_batches: of the epoch.
        batches_a_step: whose mean gradient makes a step.
        workers: the processes.

    Returns:
        A range a step.
    """
    firsts = range(0, n_batches, batches_a_step)
    return [range(first + workers.rank, min(first + batches_a_step, n_batches), workers.size) for first in firsts]


def share_of_batches(n_batches: int, workers: Workers) -> range:
    """Numbers of the batches that a process evaluates: a piece of their order, so that all pieces make the order."""
    start, stop = (n_batches * rank // workers.size for rank in (workers.rank, workers.rank + 1))
    return range(start, stop)
