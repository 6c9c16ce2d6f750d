"""Cross-entropy of the next item over the whole catalogue."""

import math
from dataclasses import dataclass

from torch import Tensor

from recbole_perpeft.core.settings import Settings
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.nn.losses.cross_entropy import shared_cross_entropy
from recbole_perpeft.nn.losses.loss import NextItems


@dataclass(frozen=True)
class SoftmaxLoss(Settings):
    """Cross-entropy over all items but the pad, all of which are encoded in every step."""

    draws = Draws(catalogue=True)

    def __call__(self, batch: NextItems) -> Tensor:
        """As in `Loss`."""
        _, hidden, target = batch.positions()
        target = target.to(hidden.device)
        bias = hidden.new_zeros(batch.n_items)
        bias[0] = -math.inf
        return shared_cross_entropy(
            hidden, batch.vectors, batch.vectors.index_select(0, target), bias.to(hidden.device), column=target
        )
