"""User encoders: a sequence of item vectors becomes a vector at every slot."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """What all user encoders have."""

    hidden_size: int = setting(64, "Width of item and user vectors.", least=1)
    n_layers: int = setting(2, "Blocks.", least=1)
    n_heads: int = setting(2, "Attention heads; must divide hidden_size.", least=1)

    def check(self) -> None:
        """Heads are equally wide."""
        if self.hidden_size % self.n_heads:
            raise PerPEFTError(f"n_heads is {self.n_heads}: it must divide hidden_size, {self.hidden_size}")


@dataclass(frozen=True)
class UserEncoderSettings(TransformerSettings):
    """The user encoder `sasrec`."""

    dropout_prob: float = setting(
        0.3, "Dropout on the embedding, attention weights and in feed-forward parts.", least=0, below=1, kind="rate"
    )


def left_pad(rows: Tensor, length: Tensor) -> Tensor:
    """Moves the pads of right-padded rows (RecBole's form) to the left, newest item last.

    Args:
        rows: Ids, [B, L, ...], the first `length[b]` of row b are in use.
        length: [B], each between 0 and L.

    Returns:
        As `rows`, zeros in front.
    """
    width = rows.shape[1]
    source = torch.arange(width, device=rows.device) - (width - length).unsqueeze(1)  # (B, L)
    source = source.view(*source.shape, *(1 for _ in rows.shape[2:]))
    return torch.take_along_dim(rows, source.clamp_min(0), 1) * (source >= 0)


@torch.no_grad()
def initialise_like_perpeft(module: nn.Module) -> None:
    """Xavier-normal for every matrix, zero for the rows of pads, as PerPEFT's authors do."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
    for part in module.modules():
        padding_idx = getattr(part, "padding_idx", None)
        if padding_idx is not None:
            nn.init.zeros_(cast(Tensor, part.weight)[padding_idx])


class FeedForward(nn.Module):
    """Linear - dropout - ReLU - Linear - dropout of constant width."""

    def __init__(self, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)
        self.dropout_1 = nn.Dropout(dropout_prob)
        self.dropout_2 = nn.Dropout(dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = torch.relu(self.dropout_1(self.linear_1(hidden)))
        return self.dropout_2(self.linear_2(inner))


class UserEncoderBlock(nn.Module):
    """One block: only the query is normalised before attention, then the sum is normalised before feed-forward."""

    def __init__(self, settings: UserEncoderSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(
            width, settings.n_heads, dropout=settings.dropout_prob, batch_first=True
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed_forward = FeedForward(width, settings.dropout_prob)

    def forward(self, hidden: Tensor, causal_mask: Tensor) -> Tensor:
        return self._attend(hidden, hidden, attn_mask=causal_mask, is_causal=True)

    def newest(self, hidden: Tensor) -> Tensor:
        """Output of the last slot alone, [B, 1, d]: it may see all slots, so that no mask is needed."""
        return self._attend(hidden[:, -1:], hidden)

    def _attend(self, seeing: Tensor, seen: Tensor, **mask) -> Tensor:
        query = self.attention_norm(seeing)
        attended, _ = self.attention(query, seen, seen, need_weights=False, **mask)
        hidden = self.feed_forward_norm(query + attended)
        return hidden + self.feed_forward(hidden)


class SASRecUserEncoder(nn.Module):
    """SASRec in the form of the popular PyTorch port, which PerPEFT's authors use.

    Sequences are left-padded. Pads are not masked as attention keys: the pad's item vector is attended to like any
    other, as in the authors' model.

    Args:
        settings: Sizes.
        max_seq_length: L; positions 1..L, position 0 stands at pads.
    """

    settings_classes = (UserEncoderSettings,)

    def __init__(self, settings: UserEncoderSettings, max_seq_length: int) -> None:
        super().__init__()
        self.max_seq_length = max_seq_length
        self.scale = settings.hidden_size**0.5
        self.position_embedding = nn.Embedding(max_seq_length + 1, settings.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(settings.dropout_prob)
        self.blocks = nn.ModuleList(UserEncoderBlock(settings) for _ in range(settings.n_layers))
        self.last_norm = nn.LayerNorm(settings.hidden_size, eps=1e-8)
        causal_mask = torch.ones(max_seq_length, max_seq_length, dtype=torch.bool).triu(1)
        self.register_buffer("causal_mask", causal_mask, persistent=False)

    def reset_parameters(self) -> None:
        """Weights as PerPEFT's authors start with."""
        initialise_like_perpeft(self)

    def forward(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        """Encodes left-padded sequences.

        Args:
            item_vectors: [B, L, d].
            item_seq: Item ids of the same slots, [B, L]; 0 = pad.

        Returns:
            Hidden vectors, [B, L, d]; slot L-1 stands for the user after the newest item.
        """
        hidden = self._embed(item_vectors, item_seq)
        for block in self.blocks:
            hidden = block(hidden, self.causal_mask)
        return self.last_norm(hidden)

    def newest(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        """`forward(...)[:, -1]`, [B, d], without the slots of the last block that nobody looks at."""
        hidden = self._embed(item_vectors, item_seq)
        for block in self.blocks[:-1]:
            hidden = block(hidden, self.causal_mask)
        last = cast(UserEncoderBlock, self.blocks[-1])
        return self.last_norm(last.newest(hidden)).squeeze(1)

    def _embed(self, item_vectors: Tensor, item_seq: Tensor) -> Tensor:
        slots = torch.arange(1, self.max_seq_length + 1, device=item_seq.device)
        positions = slots * (item_seq != 0)  # (B, L)
        return self.dropout(item_vectors * self.scale + self.position_embedding(positions))
