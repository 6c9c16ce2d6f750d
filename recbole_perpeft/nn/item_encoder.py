"""Item vectors: what an item looks like to a group of users, plus what its id has learnt."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recbole_perpeft.nn.adapt.groups import GroupModules, personalise
from recbole_perpeft.nn.content import ContentEncoder
from recbole_perpeft.store.by_length import CHUNKS_AT_ONCE


class Projector(nn.Sequential):
    """Linear(content, 2 d) - LayerNorm - ReLU - Linear(2 d, d) - LayerNorm, as PerPEFT's authors have it.

    Args:
        content_size: Width of a content vector.
        hidden_size: Width d of an item vector.
    """

    def __init__(self, content_size: int, hidden_size: int) -> None:
        super().__init__(
            nn.Linear(content_size, 2 * hidden_size),
            nn.LayerNorm(2 * hidden_size, eps=1e-8),
            nn.ReLU(),
            nn.Linear(2 * hidden_size, hidden_size),
            nn.LayerNorm(hidden_size, eps=1e-8),
        )


class NoProjector(nn.Module):
    """Adds nothing to id vectors where there is no content; arguments as in `Projector`."""

    def __init__(self, content_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, content: Tensor) -> Tensor:
        """Zeros, [n, d], for content [n, 0]."""
        return content.new_zeros(len(content), self.hidden_size)


class ItemEncoder(nn.Module):
    r"""Vectors of items: what a group sees in an item's content, plus what the item's id has learnt.

    .. math:: e_g(i) = w \, \mathrm{projector}_g(\mathrm{content}_g(i)) + \mathrm{id}(i)

    Kim, Hwang and Shin, WWW 2026 (arXiv 2602.09445), with w = 0.5. The IISAN papers have a single linear layer as
    projector, w = 1 and no id vectors. Item 0 is the pad: its content is a zero vector, which the projector maps to a
    constant, and its id vector is zero.

    Args:
        content_encoder: Where content vectors come from.
        n_items: Number of items, the pad included.
        hidden_size: Width d of an item vector.
        content_weight: w.
        chunk_size: Items that a content encoder takes at once; `encode_catalogue` gives it several times as many,
            which it may sort.
        projector: Makes a module from the width of a content vector and d.
        has_ids: Whether items have id vectors beside their content.

    Attributes:
        projectors: `global`, and after `personalise` one a group, named by its number.
        id_embedding: Id vectors of all items, shared by all groups; None without ids.
        foundation_fingerprint: Identifies the weights of the foundation model.
    """

    def __init__(
        self,
        content_encoder: ContentEncoder,
        n_items: int,
        hidden_size: int,
        content_weight: float = 0.5,
        chunk_size: int = 64,
        projector: Callable[[int, int], nn.Module] = Projector,
        has_ids: bool = True,
    ) -> None:
        super().__init__()
        self.n_items = n_items
        self.hidden_size = hidden_size
        self.content_encoder = content_encoder
        self.projectors = GroupModules(projector(content_encoder.content_size, hidden_size))
        self.id_embedding = nn.Embedding(n_items, hidden_size, padding_idx=0) if has_ids else None
        self.content_weight = content_weight
        self.chunk_size = chunk_size
        self.foundation_fingerprint = content_encoder.foundation_fingerprint

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """Encodes items; callers pass each item once.

        Args:
            items: [n], on any device.
            group: Number of the group; None for the global module.

        Returns:
            [n, d]
        """
        vectors = self._project(self.content_encoder(items, group), group)
        return vectors if self.id_embedding is None else vectors + self.id_embedding(items.to(vectors.device))

    def _project(self, content: Tensor, group: int | None) -> Tensor:
        return self.content_weight * self.projectors.of(group)(content.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where item vectors are."""
        return next(self.parameters()).device

    def personalise(self, n_groups: int) -> None:
        """Gives each group copies of the global PEFT module and projector; the global ones stay for new users."""
        personalise(self, n_groups)

    @torch.no_grad()
    def encode_catalogue(self, group: int | None) -> Tensor:
        """Vectors of all items for a group, without dropout and gradients.

        Returns:
            [n_items, d]; row 0 is the pad.
        """
        was_training = self.training
        if was_training:
            self.eval()
        try:
            vectors = torch.empty(self.n_items, self.hidden_size, device=self.device)
            for items in torch.arange(self.n_items).split(CHUNKS_AT_ONCE * self.chunk_size):
                vectors[items[0] : items[-1] + 1] = self(items, group)
            return vectors
        finally:
            if was_training:
                self.train()

    def new_item_vectors(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """Vectors of items without interactions: their id has learnt nothing, so they have the content part alone.

        Args:
            item_tokens: At least one item of the content.
            group: Number of the group; None for the global module.

        Returns:
            [n, d]
        """
        return self._project(self.content_encoder.encode_tokens(item_tokens, group), group)
