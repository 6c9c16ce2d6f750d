"""Training losses."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError

LossType = Literal["bce", "in_batch"]


@dataclass(frozen=True)
class LossSettings:
    """The training objective.

    Args:
        loss_type: `bce` against one sampled negative (`next_item_bce_loss`), or `in_batch` against the items of the
            batch (`in_batch_debiased_loss`).
        id_embedding_reg: With `bce`: weight of the Frobenius norm of the id embedding, which is added.

    Raises:
        PerPEFTError: If the objective is unknown, or the weight is negative or not finite.
    """

    loss_type: LossType = "bce"
    id_embedding_reg: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_type not in get_args(LossType):
            raise PerPEFTError(f"loss_type must be one of {', '.join(get_args(LossType))}, got {self.loss_type!r}")
        if not 0.0 <= self.id_embedding_reg < math.inf:
            raise PerPEFTError(f"id_embedding_reg must be a finite number, at least 0, got {self.id_embedding_reg}")


def next_item_bce_loss(hidden: Tensor, positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of the next item against one sampled negative, at every slot.

    BCE(<h_t, e(pos_t)>, 1) and BCE(<h_t, e(neg_t)>, 0), each averaged over the slots in use, then added
    (PerPEFT section 3, the SASRec objective). Computed in float32 whatever the inputs are.

    Args:
        hidden: User vectors at every slot, [B, L, d].
        positive: Vectors of the next items, [B, L, d].
        negative: Vectors of the negatives, [B, L, d].
        mask: True where the slot has a next item, [B, L]; at least one.

    Returns:
        Scalar.
    """
    hidden = hidden.float()
    positive_logit = (hidden * positive.float()).sum(-1)  # (B, L)
    negative_logit = (hidden * negative.float()).sum(-1)
    per_slot = functional.softplus(-positive_logit) + functional.softplus(negative_logit)
    weight = mask.to(per_slot.dtype)
    return (per_slot * weight).sum() / weight.sum()
