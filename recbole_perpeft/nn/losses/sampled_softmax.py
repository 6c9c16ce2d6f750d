"""Cross-entropy of the next item over items that are drawn for a whole batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_perpeft.core.settings import Settings, same_as
from recbole_perpeft.data.loader import NegativeSettings
from recbole_perpeft.data.sampler import Candidates, Draws
from recbole_perpeft.nn.losses.cross_entropy import shared_cross_entropy
from recbole_perpeft.nn.losses.gbce import GBCELoss
from recbole_perpeft.nn.losses.loss import NextItems


@dataclass(frozen=True)
class SampledSoftmaxLoss(Settings):
    """`sampled_cross_entropy` with candidates from the group's pool and the catalogue (`group_negative_ratio`)."""

    n_negatives: int = same_as(GBCELoss, "n_negatives")
    settings_classes = (NegativeSettings,)

    @property
    def draws(self) -> Draws:
        """As in `Loss`."""
        return Draws(candidates=self.n_negatives)

    def __call__(self, batch: NextItems) -> Tensor:
        """As in `Loss`."""
        assert batch.candidates is not None
        row, hidden, target = batch.positions()
        return sampled_cross_entropy(
            hidden,
            batch.vectors_of(target),
            batch.vectors_of(batch.candidates.items),
            target,
            row,
            batch.candidates,
        )


def sampled_cross_entropy(
    hidden: Tensor, targets: Tensor, vectors: Tensor, target: Tensor, row: Tensor, candidates: Candidates
) -> Tensor:
    r"""Sampled softmax: :math:`-\log \frac{e^{s_t}}{e^{s_t} + \sum_c e^{s_c - \log q_c}}`, mean over positions.

    :math:`\log q_c` corrects a candidate for how often it is drawn. The target is there for sure and is not corrected,
    so that the sum below the line is that over all candidates on average; a target that is drawn too does not count
    twice. Items that the user of a position has are no candidates of his.

    Args:
        hidden: User vectors, [P, d].
        targets: Vectors of the next items, [P, d].
        vectors: Vectors of the candidates, [n, d].
        target: Ids of the next items on the CPU, [P].
        row: Row of each position in `candidates.owned`, [P].
        candidates: What was drawn.

    Returns:
        Scalar.
    """
    place = torch.searchsorted(candidates.items, target).clamp(max=len(candidates.items) - 1)
    column = place.where(candidates.items[place] == target, -1)
    device = hidden.device
    return shared_cross_entropy(
        hidden,
        vectors,
        targets,
        bias=candidates.log_weight.to(device),
        column=column.to(device),
        removed=candidates.owned.to(device),
        row=row.to(device),
    )
