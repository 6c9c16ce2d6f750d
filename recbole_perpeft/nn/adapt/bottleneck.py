"""Bottlenecks: the small blocks of adapters inside frozen transformers, and of side networks beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, cast

from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}
)
# The output projection of each kind of sub-layer; these names are those of T5's checkpoints.
_T5_SUBLAYERS = MappingProxyType(
    {
        "self_attention": "SelfAttention.o",
        "cross_attention": "EncDecAttention.o",
        "feed_forward": "DenseReluDense.wo",
    }
)


class Bottleneck(nn.Module):
    r""":math:`x + W_{up} \, a(W_{down} x + b_{down}) + b_{up}`, without normalisation or dropout.

    Args:
        width: d of the states.
        rank: r; 2 d r + d + r parameters.
        activation: a: `relu`, `gelu`, or `gelu_tanh` for its tanh form.
    """

    def __init__(self, width: int, rank: int, activation: str = "relu") -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.activation = _ACTIVATIONS[activation]()
        self.up = nn.Linear(rank, width)

    def start_near_identity(self, std: float = 0.01, bias_std: float = 0.0) -> "Bottleneck":
        """Draws normal weights and biases of these standard deviations, as IISAN's authors do; returns itself."""
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=std)
            nn.init.normal_(layer.bias, std=bias_std)
        return self

    def start_as_identity(self) -> "Bottleneck":
        """Sets the second layer to zero: the block changes nothing yet; returns itself."""
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up(self.activation(self.down(hidden)))


class AdaptedLayer(nn.Module):
    """A layer of a frozen block, followed by an adapter.

    Args:
        layer: The layer; it stays as it is.
        adapter: What its output [..., d] passes through; the dtype stays.
    """

    def __init__(self, layer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    @property
    def weight(self) -> Tensor:
        """Weight of the layer, whose dtype T5 asks for."""
        return cast(Tensor, self.layer.weight)

    def forward(self, states: Tensor) -> Tensor:
        states = self.layer(states)
        return self.adapter(states.to(self.adapter.down.weight.dtype)).to(states.dtype)


def _insert(root: nn.Module, name: str, adapter: Bottleneck) -> None:
    """Puts an adapter after the layer of a name, on the layer's device."""
    parent_name, _, own_name = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    setattr(parent, own_name, AdaptedLayer(getattr(parent, own_name), adapter))


def insert_houlsby_adapters(block: nn.Module, projections: Sequence[str], width: int, rank: int) -> None:
    """Puts an adapter after each projection of a block, before the residual connection that follows it.

    Houlsby et al., ICML 2019 (arXiv 1902.00751). As in IISAN's baselines (arXiv 2411.02992), adapters have the shape
    and the start of IISAN's blocks, and layer norms stay frozen. Where the block has a dropout of its own for a
    projection, as BERT's `output.dense` has `output.dropout`, the adapter comes after it.

    Args:
        block: A block of a transformer; changed in place.
        projections: Names in the block of the output projections of attention and of the feed-forward network.
        width: Width d of their outputs.
        rank: Width r of the bottleneck.
    """
    device = next(block.parameters()).device
    for name in projections:
        parent_name, _, own_name = name.rpartition(".")
        if own_name == "dense" and hasattr(block.get_submodule(parent_name), "dropout"):
            name = name.removesuffix("dense") + "dropout"
        with device:
            _insert(block, name, Bottleneck(width, rank).start_near_identity())


@dataclass(frozen=True)
class T5AdapterSettings(Settings):
    """Where adapters of a T5 are and how large (VIP5: Geng et al., EMNLP Findings 2023, arXiv 2305.14302)."""

    adapter_reduction: int = setting(8, "Width of the model over that of an adapter's bottleneck.", least=1)
    adapter_sublayers: list[str] = setting(list(_T5_SUBLAYERS), "Sub-layers followed by an adapter.")
    adapter_init: Literal["identity", "uniform"] = setting(
        "identity", "identity: adapters start without effect | uniform: PyTorch's start."
    )

    def check(self) -> None:
        """Every sub-layer exists."""
        unknown = [name for name in self.adapter_sublayers if name not in _T5_SUBLAYERS]
        if unknown:
            raise PerPEFTError(f"adapter_sublayers: {unknown[0]!r} is not one of {', '.join(_T5_SUBLAYERS)}")

    def adapter(self, width: int) -> Bottleneck:
        """A new adapter for states of a width, as section 3.2 of the paper has it, without a norm inside.

        Raises:
            PerPEFTError: Nothing is left of the width.
        """
        rank = width // self.adapter_reduction
        if not rank:
            raise PerPEFTError(f"adapter_reduction: {self.adapter_reduction} leaves nothing of width {width}")
        adapter = Bottleneck(width, rank, "gelu_tanh")
        return adapter.start_as_identity() if self.adapter_init == "identity" else adapter


def insert_t5_adapters(model: nn.Module, settings: T5AdapterSettings) -> int:
    """Puts an adapter behind the output projection of every chosen sub-layer of a T5 encoder-decoder, in place.

    It comes before the dropout and the residual connection of its sub-layer.

    Args:
        model: Model of transformers.
        settings: Which sub-layers, and how large the adapters are.

    Returns:
        The number of adapters.

    Raises:
        PerPEFTError: The model has no such sub-layers: it is no T5.
    """
    endings = tuple(_T5_SUBLAYERS[name] for name in settings.adapter_sublayers)
    names = [name for name, _ in model.named_modules() if endings and name.endswith(endings)]
    for role in settings.adapter_sublayers:
        if not any(name.endswith(_T5_SUBLAYERS[role]) for name in names):
            raise PerPEFTError(f"backbone: {type(model).__name__} has no {role} as T5 has it; choose a T5")
    for name in names:
        layer = cast(nn.Linear, model.get_submodule(name))
        _insert(model, name, settings.adapter(layer.out_features).to(layer.weight.device))
    return len(names)
