"""From the content space of a foundation model to the space of item vectors."""

from torch import nn


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
