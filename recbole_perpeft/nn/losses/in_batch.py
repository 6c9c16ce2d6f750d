"""Cross-entropy of the next item against all items of the batch, corrected for their popularity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.nn.losses.cross_entropy import shared_cross_entropy
from recbole_perpeft.nn.losses.loss import NextItems


@dataclass(frozen=True)
class InBatchLoss(Settings):
    """`in_batch_debiased_loss`; nothing is drawn."""

    popularity_power: float = setting(
        1.0, "Exponent of the counts that correct for popularity; 0 for no correction.", least=0, kind="rate"
    )
    draws = Draws()

    def __call__(self, batch: NextItems) -> Tensor:
        """As in `Loss`."""
        rows = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)  # (B, L + 1)
        log_p = batch.log_popularity(self.popularity_power)
        return in_batch_debiased_loss(batch.hidden, rows, batch.items, batch.vectors, log_p, batch.targets != 0)


def log_popularity(item_counts: Tensor, power: float = 1.0) -> Tensor:
    """Logarithm of the probability that a slot of a training row holds an item.

    Args:
        item_counts: How often each item occurs in the training rows, first items and targets included, [n_items];
            the pad comes first and does not count. An item that never occurs is taken to occur once.
        power: Exponent of the counts.

    Returns:
        float32 [n_items], 0 for the pad.
    """
    weights = power * item_counts.clamp(min=1).double().log()
    weights[0] = -torch.inf
    result = weights - weights.logsumexp(0)
    result[0] = 0.0
    return result.float()


def in_batch_debiased_loss(
    hidden: Tensor, rows: Tensor, items: Tensor, vectors: Tensor, log_p: Tensor, learns: Tensor | None = None
) -> Tensor:
    r"""In-batch debiased cross-entropy, IISAN (arXiv 2404.02059), section 3.3, as its authors compute it.

    A slot's candidates are the slots of the whole batch: its own target and every slot whose item does not occur in
    its row. The score of item k is :math:`\langle h, e_k \rangle - \log p_k`. An item at c slots is c candidates,
    which is what the popularity corrects; here it is one candidate with :math:`\log c` added to its score, so that the
    work grows with distinct items. The mean is over slots with a next item. Scores are computed in float32 at least
    and a few at a time, the gradient along with them: memory does not grow with slots times items.

    Ids are sorted out on their own device, preferably the CPU: then an accelerator is not waited for.

    Args:
        hidden: User vectors after each input slot, [B, L, d].
        rows: Ids of inputs and, one slot later, their targets, left-padded with 0, [B, L + 1].
        items: The distinct ids in `rows`, ascending, with or without the pad, [n], as from `torch.unique`.
        vectors: Their item vectors, [n, d].
        log_p: Of all items, [n_items], as from `log_popularity`; on any device.
        learns: Input slots whose next item is a target, [B, L]; None for all that have one.

    Returns:
        Scalar.

    Raises:
        PerPEFTError: The rows are not left-padded, or no slot has a next item.
    """
    real = rows != 0
    predicts = real[:, :-1]
    if bool((predicts & ~real[:, 1:]).any()):
        raise PerPEFTError("rows of the in-batch loss must be left-padded: an item is followed by a pad")
    user, slot = (predicts if learns is None else learns).nonzero(as_tuple=True)  # (P,)
    if not len(user):
        raise PerPEFTError("the in-batch loss needs a row with an item and the one after it; the batch has none")
    place = torch.searchsorted(items, rows)  # (B, L + 1)
    column_user, column_slot = real.nonzero(as_tuple=True)
    columns = place[column_user, column_slot]
    in_row = torch.zeros(len(rows), len(items), dtype=torch.bool, device=rows.device)
    in_row[column_user, columns] = True
    count = torch.bincount(columns, minlength=len(items))  # 0 for the pad: log 0 removes it
    target = place[user, slot + 1]

    device = hidden.device
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, vectors.dtype), torch.float32)
    correction = log_p[items.to(log_p.device)].to(device, dtype)
    target = target.to(device)
    return shared_cross_entropy(
        hidden.flatten(0, 1).index_select(0, (user * predicts.shape[1] + slot).to(device)),
        vectors,
        vectors.index_select(0, target),
        bias=count.to(device, dtype).log() - correction,
        target_bias=-correction[target],
        removed=in_row.to(device),  # the target's own item among them
        row=user.to(device),
    )
