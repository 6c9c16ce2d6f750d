"""Bottleneck adapters inside the blocks of a frozen transformer."""

import torch
from torch import Tensor, nn

from recbole_perpeft.nn.side_network import SideBlock, SideNetworkSettings


class AdaptedLayer(nn.Module):
    """A layer of a frozen block, followed by an adapter.

    Args:
        layer: The layer; it stays as it is.
        adapter: What its output [..., d] passes through; the dtype stays.
    """

    def __init__(self, layer: nn.Module, adapter: SideBlock) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def forward(self, states: Tensor) -> Tensor:
        states = self.layer(states)
        return self.adapter(states.to(self.adapter.down.weight.dtype)).to(states.dtype)


def insert_adapters(block: nn.Module, projections: list[str], width: int, rank: int) -> None:
    """Puts an adapter after each projection of a block, before the residual connection that follows it.

    Houlsby et al., ICML 2019 (arXiv 1902.00751). As in IISAN's baselines (arXiv 2411.02992), adapters have the shape
    and the start of IISAN's blocks, and layer norms stay frozen. Where the block has a dropout of its own for a
    projection, as BERT's `output.dense` has `output.dropout`, the adapter comes after it.

    Args:
        block: A block of a transformer; changed in place.
        projections: Names in the block of the output projections of attention and of the feed-forward network.
        width: Width d of their outputs.
        rank: Width r of the bottleneck; 2 d r + d + r parameters.
    """
    device = next(block.parameters()).device
    for name in projections:
        parent_name, _, own_name = name.rpartition(".")
        parent = block.get_submodule(parent_name)
        if own_name == "dense" and hasattr(parent, "dropout"):
            own_name = "dropout"
        with torch.device(device):
            adapter = SideBlock(width, rank, SideNetworkSettings())
        setattr(parent, own_name, AdaptedLayer(getattr(parent, own_name), adapter))
