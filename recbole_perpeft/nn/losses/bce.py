"""Binary cross-entropy of the next item against one sampled negative."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from recbole_perpeft.core.settings import Settings
from recbole_perpeft.data.loader import NegativeSettings
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.nn.losses.loss import NextItems


@dataclass(frozen=True)
class BCELoss(Settings):
    """`next_item_bce_loss`, with one negative a target."""

    draws = Draws(negatives=1)
    settings_classes = (NegativeSettings,)

    def __call__(self, batch: NextItems) -> Tensor:
        """As in `Loss`."""
        positive, negative = batch.vectors_of(batch.targets), batch.vectors_of(batch.negatives.squeeze(-1))
        return next_item_bce_loss(batch.hidden, positive, negative, (batch.targets != 0).to(batch.hidden.device))


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
