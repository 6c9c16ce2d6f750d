"""What the model knows of items besides their names: titles, and feature vectors of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.models.vip5.visual import VisualSettings, read_features
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings


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
    reads_images = bool(settings.n_visual_tokens and not settings.image_features)
    fields = ((TITLE,) if needs_titles else ()) + ((IMAGE,) if reads_images else ())
    content = None
    if fields:
        content = ItemContent.load(
            config.dataset_folder, config["dataset"], item_tokens[1:], config["missing_content"], fields
        )
        if not reads_images:
            content.check({})
    titles = _titles(content, item_tokens) if needs_titles else []
    if not settings.n_visual_tokens:
        return ItemInputs(titles)
    if settings.image_features:
        return ItemInputs(titles, *_from_file(config.dataset_folder / settings.image_features, item_tokens))
    return ItemInputs(titles, *_from_encoder(config, content, item_tokens, settings))


def _titles(content: ItemContent, item_tokens: Sequence[str]) -> list[str]:
    title_of = dict(zip(content.tokens, content.titles, strict=True))
    return [title_of[str(token)] for token in item_tokens[1:]]


def _from_encoder(config, content: ItemContent, item_tokens, settings: VisualSettings) -> tuple[Tensor, Tensor, str]:
    states = HiddenStateSettings(
        encoder=settings.image_encoder,
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
    return torch.from_numpy(features), torch.from_numpy(rows >= 0), f"{path.name} of width {features.shape[1]}"
