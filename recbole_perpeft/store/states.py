"""The cache of hidden states: what an encoder makes of every item, computed once, memory-mapped.

IISAN trains on these alone (arXiv 2411.02992, section 3.4): no encoder is in memory while it trains.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.digest import DIGEST_BYTES, checksum, digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import IMAGE, ItemContent
from recbole_perpeft.pretrained.families import Family, added_families
from recbole_perpeft.pretrained.locate import locate_encoder, weights_fingerprint
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.arrays import read_array, write_array
from recbole_perpeft.store.encode import (
    DIGEST,
    FINAL,
    FIRST_STATE,
    STATES,
    HiddenStateSettings,
    StateEncoder,
    kind_of,
    load_processor,
    text_digests,
)
from recbole_perpeft.store.recipe import STAMP, Chunk, ComputedChunk, FinishedChunk, Recipe
from recbole_perpeft.store.rows import Layout, RowFiles, UnusableRowsError
from recbole_perpeft.store.table import Table

__all__ = ["HiddenStateCache", "HiddenStateSettings"]

# Texts are sorted by length within a chunk: the more batches, the less padding, and the more is lost in a kill.
BATCHES_A_CHUNK = 8
SHARED_STATE = "shared_state_0.npy"
COMPARED_ROWS = 1024
# How a message calls what hidden states depend on.
_CALLED = {
    "fingerprint": "weights of the encoder",
    "family": "how a plugin says that the encoder is read",
    "quantization": "quantization",
    "pooling": "pooling",
    "dtype": "dtype",
    "max_length": "text length",
    "tokenizer": "tokenizer",
    "image": "image processor",
}


class HiddenStateCache:
    """Hidden states of all items of a data set, one row an item, in the order of its item file.

    It lies in a folder named by data set, field, encoder and pooling. A cache of more layers than asked for serves as
    well.

    Attributes:
        folder: where it lies.
        n_rows: number of items.
        layers: indexes of the states, ascending; 0 is the output of the embedding.
        n_states: number of these.
        width: size of a state, d.
        dtype: as the states are stored.
        fingerprint: identifies what computes the states: weights, quantization, pooling, inputs, layers.
        is_first_shared: whether state 0 is the same for all items, as that of a class token is, and kept once.
        damaged: why an image cannot be used, by row.
    """

    def __init__(self, table: Table, layers: Sequence[int]):
        origin = table.values["origin"]
        self._table = table
        self.folder = table.folder
        self.n_rows = table.files.n_rows
        self.damaged = table.damaged
        self.layers = tuple(layers)
        self.n_states = len(self.layers)
        self.width: int = table.values["width"]
        self.dtype: torch.dtype = getattr(torch, origin["parts"]["dtype"])
        self.is_first_shared: bool = table.values["is_first_shared"]
        parts = {name: value for name, value in origin["parts"].items() if name != "dtype"}
        text = json.dumps([parts, self.layers], sort_keys=True)
        self.fingerprint = digest(text.encode()).hexdigest()
        self._stored = [layer for layer in origin["layers"] if layer]
        self._shared = torch.from_numpy(_shared_state(self.folder, table.values)) if self.is_first_shared else None

    @classmethod
    def open(cls, folder: Path, content: ItemContent, field: str, settings: HiddenStateSettings) -> "HiddenStateCache":
        """Open a finished cache, which must be one of this content, encoder and settings.

        Raises:
            PerPEFTError: it is damaged, or made of something else; the message says what differs.
        """
        recipe = StatesRecipe(content, field, settings, Path(folder).parent)
        return cls(Table.open(Path(folder), recipe), settings.layers)

    @classmethod
    def open_or_build(
        cls,
        content: ItemContent,
        field: str,
        settings: HiddenStateSettings,
        cache_folder: Path,
        show_progress: bool = True,
    ) -> "HiddenStateCache":
        """Open the cache of this content, encoder and settings; compute first what is missing, outdated or damaged.

        Args:
            content: the items, loaded with this field.
            field: `title`, `image`, or another column of text.
            settings: which states.
            cache_folder: folder of caches, shared by data sets and encoders.
            show_progress: whether to show a progress bar.

        Raises:
            PerPEFTError: the encoder cannot be had or has no such states; a state is not finite; all that is wrong
                with the content (see :meth:`ItemContent.check`); the disk is full.
        """
        if field not in content.fields:
            raise PerPEFTError(f"{content.name}: the field {field!r} was not loaded; name it among the fields")
        if kind_of(field) == "text" or not content.report.may_be_blank:
            content.check({})
        recipe = StatesRecipe(content, field, settings, cache_folder)
        table = Table.open_or_build(recipe.folder, recipe, show_progress)
        if kind_of(field) == IMAGE:
            content.check(table.damaged)
        return cls(table, settings.layers)

    @property
    def identity(self) -> str:
        """Identifies the states: what computes them, from which content, and how they are stored."""
        content = digest(self._table.files.read(DIGEST, 0, self.n_rows).tobytes()).hexdigest()
        return f"{self.fingerprint}-{self.dtype}-{content}"

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad.

        Raises:
            PerPEFTError: an item is not in the cache.
        """
        return self._table.rows_of(item_tokens)

    def states(self, rows: Tensor) -> Tensor:
        """Kept states of some items.

        Args:
            rows: LongTensor [n]; -1 for the pad, whose states are zeros.

        Returns:
            [n, n_states, width] as stored, on the CPU.
        """
        first = 1 if 0 in self.layers else 0
        taken = torch.empty(len(rows), self.n_states, self.width, dtype=self.dtype)
        if self._shared is not None and first:
            taken[:, 0] = torch.where(rows.cpu().unsqueeze(1) < 0, 0, self._shared)
        elif first:
            taken[:, 0] = self._table.take(FIRST_STATE, rows)
        if self.n_states > first:
            states = self._table.take(STATES, rows)
            places = [self._stored.index(layer) for layer in self.layers[first:]]
            taken[:, first:] = states if len(places) == len(self._stored) else states[:, places]
        return taken

    def final(self, rows: Tensor) -> Tensor:
        """Vectors after the final norm of the encoder, [n, width]; zeros for the pad."""
        return self._table.take(FINAL, rows)

    def n_bytes(self) -> int:
        """What all rows take of the disk."""
        return self._table.files.n_bytes()


class StatesRecipe(Recipe):
    """Hidden states of one field of the items.

    Args:
        content: The items, loaded with this field.
        field: `title`, `image`, or another column of text.
        settings: Which states.
        cache_folder: Folder of caches.

    Attributes:
        folder: Where their table belongs.
        settings: With a pooling.
        width: Size of a state.

    Raises:
        PerPEFTError: The encoder cannot be had or has no such states.
    """

    format = "recbole_perpeft hidden states, version 1"
    digest = DIGEST

    def __init__(self, content: ItemContent, field: str, settings: HiddenStateSettings, cache_folder: Path) -> None:
        self.kind = kind_of(field)
        shape = Backbone.skeleton(settings.encoder, self.kind)
        n_layers = len(shape.layers) if settings.layers else 0
        if beyond := [layer for layer in settings.layers if not 0 <= layer <= n_layers]:
            raise PerPEFTError(f"cache_layers: {settings.encoder} has the states 0 to {n_layers}, and no {beyond[0]}")
        self.settings = replace(settings, pooling=shape.check_pooling(settings.pooling))
        self.width = shape.width
        about = {
            "data_set": content.name,
            "field": field,
            "origin": _origin(self.kind, self.settings, Path(cache_folder), shape.family),
            "tokens": content.tokens,
            "width": self.width,
        }
        title = f"hidden states of {content.name} ({field}, {Path(settings.encoder).name})"
        chunk_rows = BATCHES_A_CHUNK * settings.batch_size
        texts = None if self.kind == IMAGE else content.texts[field]
        super().__init__(content, field, title, about, chunk_rows, texts, self.kind == IMAGE)
        encoder = "-".join(re.split(r"[^\w.]+", settings.encoder.strip("./~"))[-2:])
        column = re.sub(r"[^\w.-]+", "-", field)
        self.folder = Path(cache_folder) / f"{content.name}-{column}-{encoder}-{self.settings.pooling}-states"

    def layout(self, values: dict[str, Any]) -> Layout:
        """As in `Recipe`."""
        layers, width = values["origin"]["layers"], values["width"]
        dtype = np.dtype(values["origin"]["parts"]["dtype"]).newbyteorder("<").str
        layout: Layout = {DIGEST: ("|u1", (DIGEST_BYTES,)), FINAL: (dtype, (width,))}
        if self.reads_images:
            layout[STAMP] = ("<i8", (3,))
        if n_blocks := len(layers) - (0 in layers):
            layout[STATES] = (dtype, (n_blocks, width))
        if 0 in layers and not values.get("is_first_shared"):
            layout[FIRST_STATE] = (dtype, (width,))
        return layout

    def check(self, folder: Path, values: dict[str, Any]) -> None:
        """As in `Recipe`; names what differs."""
        about = self.about
        changes = [
            f"{called} ({values[name]} -> {about[name]})"
            for name, called in (("data_set", "data set"), ("field", "field"))
            if values[name] != about[name]
        ]
        changes += _changes_of_origin(values["origin"], about["origin"])
        changes += _changes_of_items(values["tokens"], about["tokens"])
        if changes:
            raise UnusableRowsError(f"{folder}: changed since it was built: {'; '.join(changes)}.")
        if values["is_first_shared"]:
            _shared_state(folder, values)

    def marks(self) -> dict[str, np.ndarray]:
        """As in `Recipe`."""
        return super().marks() if self.texts is None else {DIGEST: text_digests(self.texts)}

    def rows(self, files: RowFiles, values: dict[str, Any], start: int, stop: int) -> dict[str, np.ndarray]:
        """As in `Recipe`."""
        rows = super().rows(files, values, start, stop)
        if values["is_first_shared"]:
            shared = _shared_state(files.folder, values)
            rows[FIRST_STATE] = np.broadcast_to(shared, (stop - start, self.width))
        return rows

    def may_replace(self, values: dict[str, Any]) -> bool:
        """As in `Recipe`: states that were taken in from a file are not mixed with others."""
        return "taken_from" not in values

    def compute(self, files: RowFiles, chunks: list[Chunk]) -> Iterator[FinishedChunk]:
        """As in `Recipe`.

        Raises:
            PerPEFTError: A state is not finite.
        """
        for encoded in self.encoded(chunks):
            yield encoded.write(files)

    def encoded(self, chunks: list[Chunk]) -> Iterator[ComputedChunk]:
        """Rows of chunks, in any order."""
        if self.settings.engine == "ray":
            from recbole_perpeft.store.ray_workers import encode_with_ray

            return encode_with_ray(self.kind, self.settings, chunks)
        return StateEncoder(self.kind, self.settings).encode(chunks)

    def finish(self, files: RowFiles, chunks: Sequence[FinishedChunk]) -> dict[str, Any]:
        """As in `Recipe`: whether state 0 is the same for all items; it is then kept once."""
        if FIRST_STATE not in files.layout or not self._is_first_constant(files):
            return {"is_first_shared": False}
        shared = files.read(FIRST_STATE, 0, 1)[0]
        write_array(files.folder / SHARED_STATE, shared)
        return {"is_first_shared": True, "shared_checksum": checksum([shared])}

    def _is_first_constant(self, files: RowFiles) -> bool:
        """Whether state 0 differs between items by no more than rounding, as that of a class token does."""
        first = files.read(FIRST_STATE, 0, 1).astype(np.float32)
        tolerance = 4 * np.finfo(self.settings.dtype).eps * np.abs(first).max()
        n = files.n_rows
        return n > 1 and all(
            np.abs(files.read(FIRST_STATE, start, min(start + COMPARED_ROWS, n)) - first).max() <= tolerance
            for start in range(0, n, COMPARED_ROWS)
        )


def _origin(kind: str, settings: HiddenStateSettings, cache_folder: Path, family: Family) -> dict[str, Any]:
    """What hidden states depend on, content apart: the name of the encoder, which decides nothing, and `parts`."""
    processor = load_processor(kind, settings).description
    inputs = {"max_length": processor["text_length"], "tokenizer": processor["tokenizer"]} if kind == "text" else {}
    parts = {
        "fingerprint": weights_fingerprint(locate_encoder(settings.encoder, kind), kind, cache_folder),
        "quantization": settings.quantization,
        "pooling": settings.pooling,
        "dtype": settings.dtype,
        **(inputs or {"image": processor["image"]}),
        **({"family": family.reading} if family in added_families() else {}),
    }
    return {"encoder": settings.encoder, "layers": list(settings.layers), "parts": parts}


def _changes_of_origin(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What has to be another for the wanted states; more layers than wanted do no harm."""
    changes = []
    for name in sorted(known["parts"].keys() | wanted["parts"].keys(), key=[*_CALLED].index):
        before, after = known["parts"].get(name), wanted["parts"].get(name)
        if before != after:
            is_short = all(isinstance(value, str | int | None) and len(str(value)) < 20 for value in (before, after))
            changes.append(_CALLED[name] + (f" ({before} -> {after})" if is_short else ""))
    if missing := sorted(set(wanted["layers"]) - set(known["layers"])):
        changes.append(f"layers ({_listed(missing)} are not among {_listed(known['layers'])})")
    return changes


def _changes_of_items(known: list[str], wanted: list[str]) -> list[str]:
    if known == wanted:
        return []
    if set(known) == set(wanted):
        row = next(row for row, pair in enumerate(zip(known, wanted, strict=True)) if pair[0] != pair[1])
        return [f"order of the items (from row {row}, {known[row]!r} -> {wanted[row]!r})"]
    differences = ((set(wanted) - set(known), "new"), (set(known) - set(wanted), "gone"))
    return [f"{len(items)} items {what} ({min(items)!r} ...)" for items, what in differences if items]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _shared_state(folder: Path, values: dict[str, Any]) -> np.ndarray:
    """State 0 where it is the same for all items, [width].

    Raises:
        UnusableRowsError: the file is missing or damaged. Version 0.1.0 kept no checksum of it.
    """
    path, width = folder / SHARED_STATE, values["width"]
    try:
        state = read_array(path)
    except (OSError, ValueError) as error:
        raise UnusableRowsError(f"{path}: not a complete array ({error}).") from error
    if state.shape != (width,):
        raise UnusableRowsError(f"{path}: holds {state.shape}, not {(width,)}.")
    found = checksum([state])
    if values.get("shared_checksum", found) != found or not np.isfinite(state).all():
        raise UnusableRowsError(f"{path}: was changed after it was written.")
    return state
