"""Visual tokens: k vectors in place of words for every item, from a feature vector of its image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting


@dataclass(frozen=True)
class VisualSettings(Settings):
    """How images become tokens."""

    n_visual_tokens: int = setting(2, "Tokens that an image becomes; 0 for a model without images.", least=0)
    visual_norm: bool = setting(True, "Whether they pass a norm.")
    image_encoder: str | None = setting(
        None, "Whose final vectors they are made of: a hub id, folder or aspects-clip."
    )
    image_pooling: str | None = setting(None, "cls | mean; ~ for the usual way of the encoder.")
    image_features: str | None = setting(
        None, "Instead, a file <name>.npy in the data set's folder, item ids in <name>.txt."
    )
    cache_dtype: Literal["float16", "float32"] = setting("float16", "How vectors of the encoder are stored.")
    encoder_chunk_size: int = setting(64, "Images at once.", least=1)

    def check(self) -> None:
        """Tokens are made of something."""
        if self.n_visual_tokens and not (self.image_encoder or self.image_features):
            raise PerPEFTError(
                "n_visual_tokens: there are no images; set image_encoder or image_features, or n_visual_tokens: 0"
            )


def read_features(path: Path) -> tuple[list[str], np.ndarray]:
    """Feature vectors from a file.

    Args:
        path: `<name>.npy`; the items are in `<name>.txt`, one a line.

    Returns:
        Item tokens, and float array [n, d_v].

    Raises:
        PerPEFTError: A file is missing or damaged, or the two do not fit.
    """
    listing = path.with_suffix(".txt")
    for file in (path, listing):
        if not file.is_file():
            raise PerPEFTError(
                f"image_features: {file} is missing; write vectors to <name>.npy and item ids to <name>.txt"
            )
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise PerPEFTError(f"image_features: {path} is no array of NumPy ({error})") from error
    tokens = listing.read_text(encoding="utf-8").split("\n")
    tokens = tokens[:-1] if tokens[-1] == "" else tokens
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(tokens):
        raise PerPEFTError(
            f"image_features: {path} has {vectors.dtype} {list(vectors.shape)}, {listing} {len(tokens)} items; there "
            "must be one row of floats an item"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise PerPEFTError(f"image_features: {path}: the row {bad[0]} of {tokens[bad[0]]!r} is not finite")
    return tokens, vectors


class _Norm(nn.RMSNorm):
    """RMS norm in the precision of its weight, whatever mixed precision makes of its input."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.to(self.weight.dtype))


class VisualMapping(nn.Sequential):
    """Linear(d_v, k d / 2), tanh, Linear(k d / 2, k d), norm: equation 1 of the paper, as its code has it.

    Args:
        n_features: d_v.
        width: d.
        n_tokens: k.
        norm: Whether the norm is there.
    """

    def __init__(self, n_features: int, width: int, n_tokens: int, norm: bool) -> None:
        size = n_tokens * width
        layers = [nn.Linear(n_features, size // 2), nn.Tanh(), nn.Linear(size // 2, size)]
        super().__init__(*layers, *([_Norm(size, eps=1e-6)] if norm else []))


class VisualTokens(nn.Module):
    """k vectors an item. Features are no part of a state dict.

    Args:
        features: [n_items, d_v] in the order of item ids; what stands at items without an image is not read.
        has_image: bool [n_items].
        width: d.
        settings: k, and whether there is a norm.

    Attributes:
        n_tokens: k.
        stand_in: The tokens of items without an image, [k d]; None while all items have one.
    """

    def __init__(self, features: Tensor, has_image: Tensor, width: int, settings: VisualSettings) -> None:
        super().__init__()
        self.n_tokens, self.width = settings.n_visual_tokens, width
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("has_image", has_image, persistent=False)
        self.mapping = VisualMapping(features.shape[1], width, self.n_tokens, settings.visual_norm)
        # Id 0 is the pad, which is never mentioned.
        self.stand_in = None if bool(has_image[1:].all()) else nn.Parameter(torch.zeros(self.n_tokens * width))

    def forward(self, items: Tensor) -> Tensor:
        """Tokens of items, each distinct item computed once.

        Args:
            items: int64 [n].

        Returns:
            [n, k, d]
        """
        distinct, place = torch.unique(items, return_inverse=True)
        tokens = self.mapping(self.features[distinct].to(self.mapping[0].weight.dtype))
        if self.stand_in is not None:
            tokens = torch.where(self.has_image[distinct].unsqueeze(1), tokens, self.stand_in.to(tokens.dtype))
        return tokens[place].view(len(items), self.n_tokens, self.width)
