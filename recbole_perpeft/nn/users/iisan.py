"""User encoder of IISAN: a post-norm transformer over left-padded item vectors."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_perpeft.core.settings import setting
from recbole_perpeft.nn.users.sasrec import TransformerSettings

_ACTIVATIONS = MappingProxyType({"relu": nn.ReLU, "gelu": nn.GELU})


@dataclass(frozen=True)
class IISANUserEncoderSettings(TransformerSettings):
    """The user encoder `iisan`."""

    inner_size: int = setting(256, "Inner width of the feed-forward parts.", least=1)
    hidden_dropout_prob: float = setting(
        0.1, "Dropout on the embedding and on what blocks add.", least=0, below=1, kind="rate"
    )
    attn_dropout_prob: float = setting(0.1, "Dropout on attention weights.", least=0, below=1, kind="rate")
    hidden_act: Literal["relu", "gelu"] = setting("relu", "Activation of the feed-forward parts.")
    layer_norm_eps: float = setting(1e-6, "Added to the variance in layer norms.", above=0)


class SelfAttention(nn.Module):
    """Multi-head attention whose four projections have no bias."""

    def __init__(self, settings: IISANUserEncoderSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.n_heads = settings.n_heads
        self.dropout_prob = settings.attn_dropout_prob
        # Separate matrices: each is initialised by its own fan.
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """Mixes slots.

        Args:
            hidden: [B, L, d].
            visible: True where a slot (third axis) sees another one (fourth axis), [B, 1, L, L].

        Returns:
            [B, L, d]
        """
        query, key, value = (
            layer(hidden).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, heads, L, d / heads)
            for layer in (self.query, self.key, self.value)
        )
        dropout_prob = self.dropout_prob if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, visible, dropout_prob)
        return self.output(mixed.transpose(1, 2).flatten(2))


class PostNormBlock(nn.Module):
    """Attention and a feed-forward part, each with dropout, residual connection and a layer norm after it."""

    def __init__(self, settings: IISANUserEncoderSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.attention = SelfAttention(settings)
        self.attention_norm = nn.LayerNorm(width, eps=settings.layer_norm_eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, settings.inner_size),
            _ACTIVATIONS[settings.hidden_act](),
            nn.Linear(settings.inner_size, width),
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=settings.layer_norm_eps)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, visible)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class IISANUserEncoder(nn.Module):
    """Transformer over item vectors, as in IISAN (arXiv 2404.02059, section 3.3) and its authors' code.

    Sequences are left-padded, so that the newest item always has the last position. Slots see the items before them
    and themselves; pads are seen by nobody else. What stands at the slots of pads has no meaning.

    Args:
        settings: Sizes.
        max_seq_length: L.
    """

    settings_classes = (IISANUserEncoderSettings,)
    causal: Tensor
    diagonal: Tensor

    def __init__(self, settings: IISANUserEncoderSettings, max_seq_length: int) -> None:
        super().__init__()
        self.max_seq_length = max_seq_length
        self.position_embedding = nn.Embedding(max_seq_length, settings.hidden_size)
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.dropout = nn.Dropout(settings.hidden_dropout_prob)
        self.blocks = nn.ModuleList(PostNormBlock(settings) for _ in range(settings.n_layers))
        slots = torch.arange(max_seq_length)
        self.register_buffer("causal", slots.unsqueeze(1) >= slots, persistent=False)
        self.register_buffer("diagonal", slots.unsqueeze(1) == slots, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal matrices and position table, zero biases."""
        nn.init.xavier_normal_(self.position_embedding.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        """Encodes left-padded sequences.

        Args:
            item_vectors: [B, L, d].
            item_seq: Item ids of the same slots, [B, L]; 0 = pad.

        Returns:
            Hidden vectors, [B, L, d]; slot L-1 stands for the user after the newest item.
        """
        hidden = self.dropout(self.norm(item_vectors + self.position_embedding.weight))
        # Pads see themselves: not all kernels of attention keep a slot that sees nothing from being NaN.
        visible = (self.causal & (item_seq != 0).unsqueeze(1)) | self.diagonal  # (B, L, L)
        visible = visible.unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden, visible)
        return hidden

    def newest(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        """`forward(...)[:, -1]`, [B, d]: the user after the newest item."""
        return self(item_vectors, item_seq)[:, -1]
