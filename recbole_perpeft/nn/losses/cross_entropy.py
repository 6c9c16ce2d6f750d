"""Cross-entropy of targets among candidates that all positions share, without holding positions x candidates."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores held at once, in float32: 4 MB, which stay in the caches of a processor, or 64 MB on an accelerator.
_SCORES_AT_ONCE = 2**20
_SCORES_ON_ACCELERATOR = 2**24
# Products of fewer rows than this are slow, however long the rows are.
_FEWEST_POSITIONS = 32


def shared_cross_entropy(
    hidden: Tensor,
    candidates: Tensor,
    targets: Tensor,
    bias: Tensor,
    target_bias: Tensor | None = None,
    column: Tensor | None = None,
    removed: Tensor | None = None,
    row: Tensor | None = None,
) -> Tensor:
    r"""Mean of :math:`-\log \frac{e^{s_t}}{e^{s_t} + \sum_c e^{\langle h, e_c \rangle + b_c}}` over positions.

    Here :math:`s_t` is the score of the target, which does not count among the candidates again. Scores are computed
    in float32 at least and a few positions at a time, the gradient along with them.

    Args:
        hidden: User vectors, [P, d].
        candidates: Vectors of the candidates, [n, d].
        targets: Vectors of the targets, [P, d].
        bias: Added to the score of each candidate, [n]; -inf removes one.
        target_bias: Added to the score of each target, [P]; None adds nothing.
        column: Place of each target among the candidates, [P], -1 where it is none of them; None where targets are
            removed otherwise.
        removed: Candidates that do not count, bool [R, n] for R rows of positions; None for none.
        row: With `removed`: row of each position, [P].

    Returns:
        Scalar.
    """
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, candidates.dtype), torch.float32)
    if target_bias is None:
        target_bias = hidden.new_zeros(len(hidden))
    numbers = (tensor.to(dtype) for tensor in (hidden, candidates, targets, bias, target_bias))
    with torch.autocast(hidden.device.type, enabled=False):
        return _SharedCrossEntropy.apply(*numbers, column, removed, row)


class _SharedCrossEntropy(torch.autograd.Function):
    """The loss and its gradient; arguments as in `shared_cross_entropy`."""

    @staticmethod
    def forward(ctx, hidden, candidates, targets, bias, target_bias, column, removed, row) -> Tensor:
        total = hidden.new_zeros(())
        grad_hidden, grad_targets = torch.empty_like(hidden), torch.empty_like(targets)
        grad_candidates = torch.zeros_like(candidates)
        at_once = _SCORES_AT_ONCE if hidden.device.type == "cpu" else _SCORES_ON_ACCELERATOR
        size = max(_FEWEST_POSITIONS, at_once // max(1, len(candidates)))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            states, wanted = hidden[part], targets[part]
            weight = torch.addmm(bias, states, candidates.T)
            if removed is not None:
                weight.masked_fill_(removed[row[part]], -math.inf)
            if column is not None:
                _remove_targets(weight, column[part].unsqueeze(1))
            score = (states * wanted).sum(1) + target_bias[part]
            top = torch.maximum(weight.amax(1), score)
            weight.sub_(top.unsqueeze(1)).exp_()
            score = score - top
            negatives = weight.sum(1)
            norm = negatives + score.exp()
            total += (norm.log() - score).sum()
            # The probabilities are weight / norm; dividing the narrow factors is less work.
            pull = (negatives / norm).unsqueeze(1)  # what the target's probability lacks
            norm = norm.unsqueeze(1)
            grad_hidden[part] = (weight @ candidates).div_(norm).addcmul_(pull, wanted, value=-1)
            grad_targets[part] = pull * -states
            grad_candidates.addmm_(weight.T, states / norm)
        ctx.save_for_backward(grad_hidden, grad_candidates, grad_targets)
        ctx.n_positions = len(hidden)
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = grad / ctx.n_positions
        return (*(one * grad for one in ctx.saved_tensors), None, None, None, None, None)


def _remove_targets(scores: Tensor, column: Tensor) -> None:
    """Sets the score of each target [p, 1] to -inf in [p, n]; a column below 0 is none."""
    place = column.clamp(min=0)
    scores.scatter_(1, place, scores.gather(1, place).masked_fill_(column >= 0, -math.inf))
