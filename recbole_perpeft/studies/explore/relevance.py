"""Which patches of a photo and which tokens of a title a score comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.families import blocks_of, find_encoder


@dataclass
class _Seen:
    """What one pass through the blocks of a tower left in the graph."""

    attention: list[Tensor] = field(default_factory=list)  # each [n, heads, T, T]
    last: Tensor | None = None  # [n, T, d], behind the last block


def relevance(
    model: nn.Module,
    kinds: tuple[str, ...],
    encode: Callable[..., Tensor],
    score: Callable[[Tensor], Tensor],
    inputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    r"""Shares of the tokens of each tower in a score, by gradient-weighted attention.

    Chefer, Gur and Wolf, *Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers*, ICCV 2021 (arXiv 2103.15679), equations 5 and 6 for self-attention: with
    :math:`\bar A = E_h[(\nabla A \odot A)^+]` of a block, relevance :math:`R = I` becomes
    :math:`R + \bar A R` block after block. Rows of R are read where the score reads the last block: at the class or
    end token, or at all tokens where they are averaged, each by the norm of its gradient. What a token says of itself
    without any attention (I) is left out, as all of it is at the class token.

    Args:
        model: The model of transformers inside `encode`; its attention is computed without a fused kernel meanwhile.
        kinds: Its towers, `text` and `image`.
        encode: Content vectors from `inputs`, [n, D].
        score: Scores of content vectors, [n].
        inputs: What `encode` takes by name, n rows each.

    Returns:
        By kind, [n, T]: shares that add up to 1, all tokens included (class token, special tokens, padding); zero
        where no token adds to the score.

    Raises:
        PerPEFTError: The model does not show its attention.
    """
    with torch.enable_grad(), _visible_attention(model), ExitStack() as stack:
        seen = {kind: stack.enter_context(_watched(*_tower(model, kind))) for kind in kinds}
        total = score(encode(**inputs)).sum()
        found = {kind: _shares(total, part, kind, model) for kind, part in seen.items()}
    return found


def _tower(model: nn.Module, kind: str) -> tuple[nn.Module, list[nn.Module]]:
    encoder, family = find_encoder(model, kind)
    return encoder, blocks_of(encoder, family)


@contextmanager
def _visible_attention(model: Any) -> Iterator[None]:
    """Fused kernels give no attention weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _watched(encoder: nn.Module, blocks: list[nn.Module]) -> Iterator[_Seen]:
    seen = _Seen()

    def enter_graph(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        # Frozen weights and no gradient of the input: without this nothing below the first adapter is in the graph.
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        return (hidden.requires_grad_() if hidden.is_leaf else hidden, *rest), kwargs

    def keep_attention(_module: nn.Module, _args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[-1] == weights.shape[-2]:
            seen.attention.append(weights)

    def keep_last(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.last = output[0] if isinstance(output, tuple) else output

    parts = [part for block in blocks for part in block.modules() if part is not block]
    hooks = [blocks[0].register_forward_pre_hook(enter_graph, with_kwargs=True)]
    hooks += [part.register_forward_hook(keep_attention) for part in parts]
    hooks.append(blocks[-1].register_forward_hook(keep_last))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _shares(total: Tensor, seen: _Seen, kind: str, model: nn.Module) -> Tensor:
    if not seen.attention or seen.last is None:
        raise PerPEFTError(f"the {kind} encoder of {type(model).__name__} does not show its attention weights")
    *gradients, of_last = torch.autograd.grad(
        total, [*seen.attention, seen.last], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    n, _, n_tokens, _ = seen.attention[0].shape
    found = torch.zeros(n, n_tokens, n_tokens, device=total.device)
    identity = torch.eye(n_tokens, device=total.device)
    for attention, gradient in zip(seen.attention, gradients, strict=True):
        found = found + (gradient * attention).clamp(min=0).mean(1) @ (identity + found)
    read_at = of_last.norm(dim=-1, keepdim=True)  # [n, T, 1]
    shares = (read_at * found).sum(1).detach()
    return shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
