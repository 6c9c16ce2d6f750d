"""The PerPEFT authors' hidden states (`<set>_preX.pt`) as caches, which IISAN finds instead of computing its own.

`recbole-perpeft cache --states=toys_games_preX.pt --dataset=toys_games`

The program that made these files was not released: which token of a state they hold is not known, and their states are
taken to be those that group LayerDrop keeps, the embedding and every second of CLIP's 12 blocks.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import check_regular
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.data.photos.images import digest_of_file, file_stamp
from recbole_perpeft.nn.layer_drop import kept_blocks
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.encode import DIGEST, FINAL, FIRST_STATE, STATES, kind_of, text_digests
from recbole_perpeft.store.recipe import STAMP, Chunk, ComputedChunk
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings, StatesRecipe
from recbole_perpeft.store.table import Table


def load_states(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """States by field, each [n, states, width], and the n item ids of their rows.

    The file is mapped, not read, and nothing in it can run.

    Raises:
        PerPEFTError: it holds something else than (states of images, states of texts, item ids).
    """
    try:
        check_regular(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PerPEFTError(f"{path}: holds more than tensors and plain values, or is damaged ({error})") from error
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 3:
        raise PerPEFTError(f"{path}: does not hold states of images, states of texts and item ids")
    images, texts, tokens = loaded
    if not isinstance(tokens, (tuple, list)) or not all(isinstance(token, str) for token in tokens):
        raise PerPEFTError(f"{path}: the third part is not a list of item ids")
    for states in (images, texts):
        if not isinstance(states, Tensor) or states.dim() != 3 or len(states) != len(tokens):
            raise PerPEFTError(f"{path}: states are not of the shape [{len(tokens)} items, states, width]")
    if len(set(tokens)) < len(tokens):
        raise PerPEFTError(f"{path}: an item id occurs twice")
    return {IMAGE: images, TITLE: texts}, list(tokens)


class _GivenStates(StatesRecipe):
    """States that are given: [n_items, n_states, width] in the order of the items, with the norm behind the last."""

    def __init__(self, source: str, given: Tensor, rows: Tensor, norm: torch.nn.Module | None, *arguments):
        super().__init__(*arguments)
        self.about["taken_from"] = source
        self._given, self._rows, self._norm = given, rows, norm

    def encoded(self, chunks: list[Chunk]) -> Iterator[ComputedChunk]:
        for chunk in chunks:
            places = slice(chunk.start, chunk.start + len(chunk.tokens))
            states = self._given[self._rows[places]].float()
            yield ComputedChunk(chunk.index, chunk.start, _content_rows(chunk) | self._state_rows(states))

    @torch.inference_mode()
    def _state_rows(self, states: Tensor) -> dict[str, np.ndarray]:
        if not states.isfinite().all():
            raise PerPEFTError("the file of states holds a value that is not finite")
        final = states[:, -1] if self._norm is None else self._norm(states[:, -1])
        kept = {FINAL: final, FIRST_STATE: states[:, 0], STATES: states[:, 1:]}
        dtype = getattr(torch, self.settings.dtype)
        return {name: values.to(dtype).contiguous().numpy() for name, values in kept.items()}


def _content_rows(chunk: Chunk) -> dict[str, np.ndarray]:
    """What tells later whether the content of the items has changed."""
    if chunk.texts:
        return {DIGEST: text_digests(chunk.texts)}
    stamps = np.array([file_stamp(path) for path in chunk.image_paths], dtype=np.int64)
    return {DIGEST: np.stack([digest_of_file(path) for path in chunk.image_paths]), STAMP: stamps}


def import_states(
    path: Path,
    content: ItemContent,
    cache_folder: Path,
    foundation_model: str = "openai/clip-vit-base-patch32",
    dtype: str = "float16",
    show_progress: bool = True,
) -> list[HiddenStateCache]:
    """Put a file of states where runs with `peft_type: iisan` look for states of this foundation model.

    Args:
        path: the file.
        content: the converted data set, with titles and images.
        cache_folder: folder of caches.
        foundation_model: the dual encoder that the states come from; its weights are read to name them.
        dtype: how states are stored, `float16` or `float32`.
        show_progress: show bars.

    Returns:
        The caches of titles and of images.

    Raises:
        PerPEFTError: the file cannot be used, lacks an item, or is not of this model.
    """
    states, tokens = load_states(path)
    row_of = {token: row for row, token in enumerate(tokens)}
    missing = [token for token in content.tokens if token not in row_of]
    if missing:
        raise PerPEFTError(f"{path}: has no states of {len(missing)} items, as {missing[0]!r}; is it of another set?")
    rows = torch.tensor([row_of[token] for token in content.tokens], dtype=torch.long)
    caches = []
    for field in (TITLE, IMAGE):
        settings = _settings(path, states[field], field, foundation_model, dtype)
        recipe = _recipe(path.name, states[field], rows, content, field, settings, cache_folder)
        caches.append(HiddenStateCache(Table.build(recipe.folder, recipe, show_progress), settings.layers))
    return caches


def _settings(path: Path, states: Tensor, field: str, foundation_model: str, dtype: str) -> HiddenStateSettings:
    """Settings of a run with this foundation model; the first state is the output of the embedding."""
    shape = Backbone.skeleton(foundation_model, kind_of(field))
    if states.shape[2] != shape.width or states.shape[1] - 1 > shape.n_layers or states.shape[1] < 2:
        raise PerPEFTError(
            f"{path}: states of {field} are {tuple(states.shape[1:])}; {foundation_model} has {shape.n_layers + 1} of "
            f"width {shape.width}. Name the model that they come from"
        )
    length = Processor.from_pretrained(foundation_model).text_length
    layers = (0, *kept_blocks(shape.n_layers, states.shape[1] - 1))
    values = {"encoder": foundation_model, "layers": layers, "max_length": length, "dtype": dtype}
    return settings_from(values, HiddenStateSettings)


def _recipe(
    source: str,
    states: Tensor,
    rows: Tensor,
    content: ItemContent,
    field: str,
    settings: HiddenStateSettings,
    cache_folder: Path,
) -> _GivenStates:
    backbone = Backbone.from_pretrained(settings.encoder, kind_of(field))
    norm = None if backbone.family.norms_last_state else backbone.norm
    return _GivenStates(source, states, rows, norm, content, field, settings, cache_folder)
