"""Optimisers of tables of which a step reaches few rows: they leave the others alone, and cost nothing for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

# By RecBole's name of the optimiser of all else. Those that stay what they are do with sparse gradients what they do
# with dense ones; Adam would move rows that no gradient reaches, by what it remembers of them.
OF_TABLES: Mapping[str, str] = {"adam": "sparse_adam", "adamw": "sparse_adam", "sgd": "sgd", "adagrad": "adagrad"}


def sparse_tables(model: nn.Module) -> list[Tensor]:
    """Parameters whose gradients hold the rows alone that a batch has reached."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse]


def without(groups: Iterable[Any], left_out: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Parameters as optimisers take them, in groups, without some.

    Args:
        groups: Parameters, or dictionaries of them.
        left_out: Those that stay out.
    """
    out = {id(parameter) for parameter in left_out}
    entries = list(groups)
    if entries and not isinstance(entries[0], dict):
        entries = [{"params": entries}]
    kept = [entry | {"params": [one for one in entry["params"] if id(one) not in out]} for entry in entries]
    return [entry for entry in kept if entry["params"]]


def fused(optimizer: Optimizer) -> Optimizer:
    """The same optimiser, before its first step, with a fused kernel: one pass over all parameters.

    Args:
        optimizer: Adam, AdamW or SGD.
    """
    make: Callable[..., Optimizer] = type(optimizer)
    groups = [group | {"fused": True, "foreach": None} for group in optimizer.param_groups]
    return make(groups, lr=optimizer.defaults["lr"], fused=True)


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimisers that one is made of, each with a state of its own: `Together`'s, or the one itself."""
    return getattr(optimizer, "parts", [optimizer])


class Together(Optimizer):
    """Several optimisers that step as one.

    Args:
        parts: Each with parameters of its own.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """As in `Optimizer`, without a closure."""
        with torch.sparse.check_sparse_tensor_invariants(False):  # said, or PyTorch warns that nobody has chosen
            for part in self.parts:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """That of each part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def clip_norm(parameters: Iterable[nn.Parameter], **limits: Any) -> None:
    """`clip_grad_norm_` that takes sparse gradients too, whose other rows are zeros.

    Args:
        parameters: With gradients or without.
        **limits: As there.
    """
    clip_grad_norm_([_to_clip(parameter) for parameter in parameters if parameter.grad is not None], **limits)


def _to_clip(parameter: nn.Parameter) -> Tensor:
    """A tensor whose gradient is that of the parameter, or the rows of it."""
    if parameter.grad is None or not parameter.grad.is_sparse:
        return parameter
    parameter.grad = parameter.grad.coalesce()
    rows = parameter.grad.values()
    holder = torch.empty_like(rows)
    holder.grad = rows
    return holder
