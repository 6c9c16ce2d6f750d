"""What the model knows of items besides their names: titles, and visual tokens in place of words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recbole_perpeft.core.digest import checksum
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import text_lines
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.core.settings import Settings, same_as, setting, settings_from
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.store.arrays import map_array
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings


@dataclass(frozen=True)
class VisualSettings(Settings):
    """How images become tokens."""

    n_visual_tokens: int = setting(2, "Tokens that an image becomes; 0 for a model without images.", least=0)
    visual_norm: bool = setting(True, "Whether they pass a norm.")
    image_encoder: str | None = same_as(EncoderSettings, "image_encoder")
    image_pooling: str | None = same_as(EncoderSettings, "image_pooling")
    image_features: str | None = setting(
        None, "Instead, a file <name>.npy in the data set's folder, item ids in <name>.txt."
    )
    cache_dtype: Literal["float16", "float32"] = same_as(EncoderSettings, "cache_dtype")
    encoder_chunk_size: int = same_as(EncoderSettings, "encoder_chunk_size")

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
        vectors = map_array(path)
    except (OSError, ValueError) as error:
        raise PerPEFTError(f"image_features: {path} is no array of NumPy ({error})") from error
    tokens = [line.rstrip("\r\n") for _, line in text_lines(listing)]
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

    features: Tensor
    has_image: Tensor

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
        tokens = self.mapping(self.features[distinct].to(next(self.mapping.parameters()).dtype))
        if self.stand_in is not None:
            tokens = torch.where(self.has_image[distinct].unsqueeze(1), tokens, self.stand_in.to(tokens.dtype))
        return tokens[place].view(len(items), self.n_tokens, self.width)


@dataclass(frozen=True)
class ItemInputs:
    """Titles and features in the order of RecBole's item ids.

    Attributes:
        titles: Of the items 1 .. n; empty when they are not needed.
        features: float [n + 1, d_v], the pad's row first; None for a model without images.
        has_image: bool [n + 1].
        fingerprint: Identifies what computed the features.
    """

    titles: list[str]
    features: Tensor | None = None
    has_image: Tensor | None = None
    fingerprint: str = "none"

    def vectors(self) -> np.ndarray:
        """Features of the items 1 .. n, each of length 1.

        Raises:
            PerPEFTError: The model has no images.
        """
        if self.features is None:
            raise PerPEFTError("id_order: content orders items by their images; set n_visual_tokens to 1 or more")
        vectors = self.features[1:].double().numpy()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def load_item_inputs(config, item_tokens: Sequence[str], settings: VisualSettings, needs_titles: bool) -> ItemInputs:
    """Reads titles, and computes or reads features.

    Args:
        config: RecBole configuration with `missing_content`, `cache_folder` and `show_progress`.
        item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.
        settings: Images.
        needs_titles: Whether templates have titles.

    Raises:
        PerPEFTError: Content or features cannot be used.
    """
    encoder = settings.image_encoder if settings.n_visual_tokens and not settings.image_features else None
    fields = ((TITLE,) if needs_titles else ()) + ((IMAGE,) if encoder else ())
    content = None
    if fields:
        content = ItemContent.load(
            config.dataset_folder,
            config["dataset"],
            item_tokens[1:],
            config["missing_content"],
            fields,
            settings_from(config, PhotoLimits),
        )
        if not encoder:
            content.check({})
    titles = _titles(content, item_tokens) if content is not None and needs_titles else []
    if settings.n_visual_tokens and settings.image_features:
        return ItemInputs(titles, *_from_file(config.dataset_folder / settings.image_features, item_tokens))
    if content is None or not encoder:
        return ItemInputs(titles)
    return ItemInputs(titles, *_from_encoder(config, content, item_tokens, encoder, settings))


def _titles(content: ItemContent, item_tokens: Sequence[str]) -> list[str]:
    title_of = dict(zip(content.tokens, content.titles, strict=True))
    return [title_of[str(token)] for token in item_tokens[1:]]


def _from_encoder(
    config, content: ItemContent, item_tokens, encoder: str, settings: VisualSettings
) -> tuple[Tensor, Tensor, str]:
    states = HiddenStateSettings(
        encoder=encoder,
        layers=(),
        pooling=settings.image_pooling,
        dtype=settings.cache_dtype,
        batch_size=settings.encoder_chunk_size,
    )
    folder, progress = Path(config["cache_folder"]), bool(config["show_progress"])
    cache = HiddenStateCache.open_or_build(content, IMAGE, states, folder, progress)
    rows = cache.rows_of(item_tokens)
    usable = [path is not None and row not in cache.damaged for row, path in enumerate(content.image_paths)]
    has_image = torch.tensor([*usable, False])[rows]  # the pad's row is -1, the last one here
    if not has_image.any():
        raise PerPEFTError("n_visual_tokens: no item has an image that can be read; set it to 0")
    return cache.final(rows), has_image, cache.fingerprint


def _from_file(path: Path, item_tokens: Sequence[str]) -> tuple[Tensor, Tensor, str]:
    tokens, vectors = read_features(path)
    row_of = {token: row for row, token in enumerate(tokens)}
    if len(row_of) < len(tokens):
        twice = next(token for row, token in enumerate(tokens) if row_of[token] != row)
        raise PerPEFTError(
            f"image_features: {path.with_suffix('.txt')} names {twice!r} twice, in line {tokens.index(twice) + 1} and "
            f"line {row_of[twice] + 1}; keep one row of {path}"
        )
    rows = np.array([row_of.get(str(token), -1) for token in item_tokens])
    rows[0] = -1
    n_missing = int((rows[1:] < 0).sum())
    if n_missing == len(rows) - 1:
        raise PerPEFTError(
            f"image_features: {path} has none of the items; write their ids to {path.with_suffix('.txt')}"
        )
    if n_missing:
        LOGGER.warning(f"image_features: {n_missing} of {len(rows) - 1} items have none; a learned one stands in")
    features = np.where(rows[:, None] >= 0, np.asarray(vectors)[np.maximum(rows, 0)], 0).astype(np.float32)
    about = f"{path.name} of width {features.shape[1]}, {checksum([features]):08x}"
    return torch.from_numpy(features), torch.from_numpy(rows >= 0), about
