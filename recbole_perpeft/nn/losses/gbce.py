"""Generalised binary cross-entropy: several negatives a target, without the overconfidence that sampling brings."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.loader import NegativeSettings
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.nn.losses.loss import NextItems

# Numbers of negatives' vectors held at once: 64 MB in float32.
_NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class GBCELoss(Settings):
    """`generalised_bce` (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192)."""

    n_negatives: int = setting(
        256, "Items drawn: for each target (gbce), or for each batch (sampled_softmax).", least=1
    )
    gbce_t: float = setting(
        0.75,
        "Calibration of gbce for draws from the catalogue: 0 is binary cross-entropy, 1 gives the odds of all items.",
        least=0,
        most=1,
        kind="rate",
    )
    settings_classes = (NegativeSettings,)

    @property
    def draws(self) -> Draws:
        """As in `Loss`."""
        return Draws(negatives=self.n_negatives)

    def __call__(self, batch: NextItems) -> Tensor:
        """As in `Loss`."""
        _, hidden, target = batch.positions()
        negatives = batch.places_of(batch.negatives[batch.targets != 0]).to(hidden.device)
        beta = calibration(self.n_negatives, batch.n_items - 1, self.gbce_t)
        return generalised_bce(hidden, batch.vectors_of(target), batch.vectors, negatives, beta)


def calibration(n_negatives: int, n_items: int, t: float) -> float:
    r"""Exponent of the probability of a target, :math:`\beta = \alpha (t (1 - 1 / \alpha) + 1 / \alpha)`.

    Args:
        n_negatives: k, negatives of a target.
        n_items: Size of the catalogue; :math:`\alpha = k / (n_{items} - 1)` is the share that is drawn.
        t: 0 leaves the probability as it is, 1 undoes what sampling does to it.
    """
    alpha = min(1.0, n_negatives / max(1, n_items - 1))
    return alpha * t + 1.0 - t


def generalised_bce(hidden: Tensor, targets: Tensor, vectors: Tensor, negatives: Tensor, beta: float) -> Tensor:
    r""":math:`-\frac{1}{k + 1} (\beta \log \sigma(s_t) + \sum_n \log (1 - \sigma(s_n)))`, mean over positions.

    Computed in float32 at least and a few positions at a time, the gradient along with it: memory does not grow with
    positions times negatives times width.

    Args:
        hidden: User vectors, [P, d].
        targets: Vectors of the next items, [P, d].
        vectors: Vectors among which the negatives are, [n, d].
        negatives: Rows of `vectors`, [P, k].
        beta: As from `calibration`.

    Returns:
        Scalar.
    """
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, vectors.dtype), torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(dtype)
        positive = functional.softplus(-(hidden * targets.to(dtype)).sum(1)).mean()
        total = _NegativeTerms.apply(hidden, vectors.to(dtype), negatives)
        return (beta * positive + total / len(hidden)) / (negatives.shape[1] + 1)


class _NegativeTerms(torch.autograd.Function):
    """Sum of -log(1 - sigmoid) over all negatives, and its gradient, a few positions at a time."""

    @staticmethod
    def forward(ctx, hidden, vectors, negatives) -> Tensor:
        total = hidden.new_zeros(())
        grad_hidden, grad_vectors = torch.empty_like(hidden), torch.zeros_like(vectors)
        size = max(1, _NUMBERS_AT_ONCE // (negatives.shape[1] * vectors.shape[1]))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            chosen = vectors[negatives[part]]  # (p, k, d)
            scores = torch.bmm(chosen, hidden[part].unsqueeze(2)).squeeze(2)  # (p, k)
            total += functional.softplus(scores).sum()
            push = scores.sigmoid_()
            grad_hidden[part] = torch.bmm(push.unsqueeze(1), chosen).squeeze(1)
            pushed = torch.mul(push.unsqueeze(2), hidden[part].unsqueeze(1), out=chosen)
            grad_vectors.index_add_(0, negatives[part].flatten(), pushed.flatten(0, 1))
        ctx.save_for_backward(grad_hidden, grad_vectors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_hidden, grad_vectors = ctx.saved_tensors
        return grad_hidden * grad, grad_vectors * grad, None
