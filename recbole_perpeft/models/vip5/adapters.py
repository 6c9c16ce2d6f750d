"""Bottleneck adapters behind the output projections of T5's sub-layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError

# The output projection of each kind of sub-layer; these names are those of T5's checkpoints.
SUBLAYERS = MappingProxyType(
    {
        "self_attention": "SelfAttention.o",
        "cross_attention": "EncDecAttention.o",
        "feed_forward": "DenseReluDense.wo",
    }
)


@dataclass(frozen=True)
class AdapterSettings:
    """Where adapters are and how large.

    Args:
        adapter_reduction: r, the width of the model over that of the bottleneck.
        adapter_sublayers: Sub-layers that have one: `self_attention`, `cross_attention`, `feed_forward`.
        adapter_init: `identity` starts with adapters that change nothing, `uniform` as the authors do, with PyTorch's
            start of linear layers.

    Raises:
        PerPEFTError: A sub-layer is unknown or r is not positive.
    """

    adapter_reduction: int = 8
    adapter_sublayers: Sequence = tuple(SUBLAYERS)
    adapter_init: Literal["identity", "uniform"] = "identity"

    def __post_init__(self) -> None:
        unknown = [name for name in self.adapter_sublayers if name not in SUBLAYERS]
        if unknown:
            raise PerPEFTError(f"adapter_sublayers: {unknown[0]!r} is not one of {', '.join(SUBLAYERS)}")
        if self.adapter_reduction < 1:
            raise PerPEFTError(f"adapter_reduction: {self.adapter_reduction} is too small; choose 1 or more")


class BottleneckAdapter(nn.Module):
    r""":math:`y + W_{up} \, \mathrm{gelu}(W_{down} y + b_{down}) + b_{up}` with the tanh form of GELU.

    VIP5 (Geng et al., EMNLP Findings 2023, arXiv 2305.14302), section 3.2, without a norm inside, as its code has it.

    Args:
        width: d.
        settings: Bottleneck of width d / r, and its start.
    """

    def __init__(self, width: int, settings: AdapterSettings) -> None:
        super().__init__()
        rank = width // settings.adapter_reduction
        if not rank:
            raise PerPEFTError(f"adapter_reduction: {settings.adapter_reduction} leaves nothing of width {width}")
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        if settings.adapter_init == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.up(functional.gelu(self.down(states), approximate="tanh"))


class AdaptedProjection(nn.Module):
    """A projection followed by an adapter, before the dropout and the residual connection of its sub-layer.

    Args:
        layer: The projection, which stays as it is.
        adapter: What its output passes through.
    """

    def __init__(self, layer: nn.Linear, adapter: BottleneckAdapter) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    @property
    def weight(self) -> Tensor:
        """Weight of the projection, whose dtype T5 asks for."""
        return self.layer.weight

    def forward(self, states: Tensor) -> Tensor:
        return self.adapter(self.layer(states))


def insert_adapters(model: nn.Module, settings: AdapterSettings) -> int:
    """Puts an adapter behind every chosen sub-layer of a T5 encoder-decoder, in place.

    Args:
        model: Model of transformers.
        settings: Which sub-layers, and how large the adapters are.

    Returns:
        The number of adapters.

    Raises:
        PerPEFTError: The model has no such sub-layers: it is no T5.
    """
    endings = tuple(SUBLAYERS[name] for name in settings.adapter_sublayers)
    names = [name for name, _ in model.named_modules() if endings and name.endswith(endings)]
    for role in settings.adapter_sublayers:
        if not any(name.endswith(SUBLAYERS[role]) for name in names):
            raise PerPEFTError(f"backbone: {type(model).__name__} has no {role} as T5 has it; choose a T5")
    for name in names:
        parent_name, _, own_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = getattr(parent, own_name)
        adapter = BottleneckAdapter(layer.out_features, settings).to(layer.weight.device)
        setattr(parent, own_name, AdaptedProjection(layer, adapter))
    return len(names)
