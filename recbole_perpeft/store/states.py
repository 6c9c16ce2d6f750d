"""The cache of hidden states: what an encoder makes of every item, computed once, memory-mapped.

IISAN trains on these alone (arXiv 2411.02992, section 3.4): no encoder is in memory while it trains.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.digest import digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import alone, written_whole
from recbole_perpeft.data.content import IMAGE, ItemContent
from recbole_perpeft.data.images import digest_of_file
from recbole_perpeft.pretrained.locate import locate_encoder, weights_fingerprint
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.encode import (
    DIGEST,
    FINAL,
    FIRST_STATE,
    STATES,
    HiddenStateSettings,
    kind_of,
    load_processor,
    text_digests,
)
from recbole_perpeft.store.inputs_build import STAMP
from recbole_perpeft.store.rows import RowFiles, draft_of_cache, rows_of_tokens
from recbole_perpeft.store.states_build import (
    StatesBuild,
    checksums,
    file_stamps,
    layout_of,
    read_shared_state,
)
from recbole_perpeft.store.states_manifest import (
    MANIFEST,
    ChangedStatesError,
    Origin,
    StatesManifest,
    UnusableStatesError,
)

__all__ = ["HiddenStateCache", "HiddenStateSettings"]

# Mapped pages that were read count as memory of the process until they are released.
MAX_MAPPED_BYTES = 256 * 2**20
FAULT_BYTES = 64 * 2**10  # what the system maps around a page that is read
N_NAMED = 3


class _ChangedContentError(ChangedStatesError):
    """Some texts or images are not those that the cache was built from."""


class HiddenStateCache:
    """Hidden states of all items of a data set, one row an item, in the order of its item file.

    A finished cache never changes, so any number of processes may map it. It lies in a folder named by data set,
    field, encoder and pooling. A cache of more layers than asked for serves as well.

    Attributes:
        folder: where it lies.
        n_rows: number of items.
        layers: indexes of the states, ascending; 0 is the output of the embedding.
        n_states: number of these.
        width: size of a state, d.
        fingerprint: identifies what computes the states: weights, quantization, pooling, inputs, layers.
        is_first_shared: whether state 0 is the same for all items, as that of a class token is, and kept once.
        damaged: why an image cannot be used, by row.
    """

    def __init__(self, folder: Path, kind: str, manifest: StatesManifest, layers: Sequence[int]):
        self.folder = folder
        self.n_rows = len(manifest.tokens)
        self.layers = tuple(layers)
        self.n_states = len(self.layers)
        self.width = manifest.width
        self.is_first_shared = manifest.is_first_shared
        self.damaged = {int(row): why for chunk in manifest.chunks for row, why in chunk.damaged.items()}
        parts = {name: value for name, value in manifest.origin.parts.items() if name != "dtype"}
        text = json.dumps([parts, self.layers], sort_keys=True)
        self.fingerprint = digest(text.encode()).hexdigest()
        self._tokens = manifest.tokens
        self._stored = [layer for layer in manifest.origin.layers if layer]
        self._files = RowFiles(
            folder, layout_of(kind, manifest.origin, manifest.width, manifest.is_first_shared), self.n_rows
        )
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which every process makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_arrays", "_shared")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    @classmethod
    def open(cls, folder: Path, content: ItemContent, field: str, settings: HiddenStateSettings) -> "HiddenStateCache":
        """Open a finished cache, which must be one of this content, encoder and settings.

        Raises:
            PerPEFTError: it is damaged, or made of something else; the message says what differs.
        """
        resolved, origin, _ = origin_of(field, settings, Path(folder).parent)
        return cls._open(Path(folder), content, field, resolved, origin)

    @classmethod
    def open_or_build(
        cls,
        content: ItemContent,
        field: str,
        settings: HiddenStateSettings,
        cache_folder: Path,
        show_progress: bool = True,
    ) -> "HiddenStateCache":
        """Open the cache of this content, encoder and settings; build it first where it is missing or outdated.

        A build that is killed goes on with the next call. Where only some texts or images have changed, only their
        chunks are computed again. Processes that want the same cache wait for the one that builds it.

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
        cache_folder = Path(cache_folder)
        if field not in content.fields:
            raise PerPEFTError(f"{content.name}: the field {field!r} was not loaded; name it among the fields")
        if kind_of(field) == "text" or not content.report.may_be_blank:
            content.check({})
        settings, origin, width = origin_of(field, settings, cache_folder)
        folder = cache_folder / folder_name(content.name, field, settings)
        try:
            cache = cls._open(folder, content, field, settings, origin)
        except (UnusableStatesError, ChangedStatesError):
            with alone(folder):
                cache = cls._open_or_build_alone(folder, content, field, settings, origin, width, show_progress)
        if kind_of(field) == IMAGE:
            content.check(cache.damaged)
        return cache

    @classmethod
    def _open(
        cls, folder: Path, content: ItemContent, field: str, settings: HiddenStateSettings, origin: Origin
    ) -> "HiddenStateCache":
        manifest = StatesManifest.read(folder)
        try:
            manifest.check(content.name, field, origin, content.tokens)
        except ChangedStatesError as change:
            raise ChangedStatesError(f"{folder}: {change}") from change
        try:
            cache = cls(folder, kind_of(field), manifest, settings.layers)
            cache._files.check()
        except PerPEFTError as error:
            raise UnusableStatesError(str(error)) from error
        cache._check_content(content, field)
        cache._verify(manifest)
        return cache

    @classmethod
    def _open_or_build_alone(
        cls,
        folder: Path,
        content: ItemContent,
        field: str,
        settings: HiddenStateSettings,
        origin: Origin,
        width: int,
        show_progress: bool,
    ) -> "HiddenStateCache":
        draft = draft_of_cache(folder)
        build = StatesBuild(content, field, settings, origin, width, draft)
        try:
            return cls._open(folder, content, field, settings, origin)
        except _ChangedContentError as change:
            LOGGER.warning(f"{change} These are computed again.")
            build.seed(folder, StatesManifest.read(folder))
        except (UnusableStatesError, ChangedStatesError) as problem:
            if folder.exists():
                LOGGER.warning(f"{problem} The hidden states are computed again.")
        build.run(show_progress)
        build.move_to(folder)
        return cls._open(folder, content, field, settings, origin)

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad.

        Raises:
            PerPEFTError: an item is not in the cache.
        """
        return rows_of_tokens(self._tokens, item_tokens, self.folder)

    def states(self, rows: Tensor) -> Tensor:
        """Kept states of some items.

        Args:
            rows: LongTensor [n]; -1 for the pad, whose states are zeros.

        Returns:
            [n, n_states, width] as stored, on the device of the cache.
        """
        existing = self._existing(rows)
        first = 1 if 0 in self.layers else 0
        taken = torch.empty(len(rows), self.n_states, self.width, dtype=self.dtype, device=self.device)
        if first:
            taken[:, 0] = self._shared if self.is_first_shared else self._take(FIRST_STATE, existing)
        if self.n_states > first:
            states = self._take(STATES, existing)
            places = [self._stored.index(layer) for layer in self.layers[first:]]
            taken[:, first:] = states if len(places) == len(self._stored) else states[:, places]
        return self._without_pads(taken, rows)

    def final(self, rows: Tensor) -> Tensor:
        """Vectors after the final norm of the encoder, [n, width]; zeros for the pad."""
        return self._without_pads(self._take(FINAL, self._existing(rows)), rows)

    @property
    def dtype(self) -> torch.dtype:
        """As the states are stored."""
        return self._arrays[FINAL].dtype

    @property
    def device(self) -> torch.device:
        """Where the states are; the CPU while they are mapped."""
        return self._arrays[FINAL].device

    def to(self, device: torch.device | str) -> "HiddenStateCache":
        """Load all states into the memory of a device, for instance a GPU, in place of the map; returns itself."""
        self._arrays = {name: array.to(device, copy=True) for name, array in self._arrays.items()}
        self._shared = None if self._shared is None else self._shared.to(device)
        self._is_mapped = False
        return self

    def n_bytes(self) -> int:
        """What `to` takes of a device's memory."""
        return sum(array.nbytes for array in self._arrays.values())

    def _map(self) -> None:
        names = [name for name in (FIRST_STATE, STATES, FINAL) if name in self._files.layout]
        self._arrays = {name: torch.from_numpy(np.asarray(self._files.map(name))) for name in names}
        shared = read_shared_state(self.folder, self.width) if self.is_first_shared else None
        self._shared = None if shared is None else torch.from_numpy(shared)
        self._is_mapped, self._n_mapped = True, 0

    def _existing(self, rows: Tensor) -> Tensor:
        if len(rows) and not -1 <= int(rows.min()) <= int(rows.max()) < self.n_rows:
            raise PerPEFTError(f"{self.folder}: has rows 0 to {self.n_rows - 1}, not {int(rows.max())}.")
        return rows.to(self.device).clamp(min=0)

    def _take(self, name: str, rows: Tensor) -> Tensor:
        taken = self._arrays[name].index_select(0, rows)
        if self._is_mapped and self.n_bytes() > MAX_MAPPED_BYTES:
            self._n_mapped += len(rows) * FAULT_BYTES + taken.nbytes
            if self._n_mapped > MAX_MAPPED_BYTES:
                self._release_pages()
        return taken

    def _release_pages(self) -> None:
        """Map the files anew: what was read stays in the file cache of the system, not in this process."""
        self._n_mapped = 0
        self._arrays = {name: torch.from_numpy(np.asarray(self._files.map(name))) for name in self._arrays}

    def _without_pads(self, taken: Tensor, rows: Tensor) -> Tensor:
        is_pad = rows.to(taken.device) < 0
        return taken.masked_fill_(is_pad.view(-1, *[1] * (taken.dim() - 1)), 0)

    def _check_content(self, content: ItemContent, field: str) -> None:
        """Raises `_ChangedContentError` unless every text or image is the one of the cache."""
        if field != IMAGE:
            digests = self._files.map(DIGEST)
            changed = np.flatnonzero((digests != text_digests(content.texts[field])).any(axis=1))
        else:
            changed = self._changed_images(content)
        if len(changed):
            named = ", ".join(repr(self._tokens[row]) for row in changed[:N_NAMED])
            more = ", ..." if len(changed) > N_NAMED else ""
            raise _ChangedContentError(f"{self.folder}: {field} of {len(changed)} items changed ({named}{more}).")

    def _changed_images(self, content: ItemContent) -> np.ndarray:
        """Rows of images that are others now; files that were only touched or copied get their stamps renewed."""
        stamps, now = np.array(self._files.map(STAMP)), content.image_stamps()
        digests = self._files.map(DIGEST)
        suspects = np.flatnonzero((stamps != now).any(axis=1))
        is_same = [np.array_equal(digest_of_file(content.image_paths[row]), digests[row]) for row in suspects]
        touched = suspects[np.array(is_same, dtype=bool)]
        if len(touched):
            stamps[touched] = now[touched]
            with written_whole(self._files.path(STAMP)) as draft, draft.open("wb") as file:
                np.save(file, stamps, allow_pickle=False)
        return np.setdiff1d(suspects, touched)

    def _verify(self, manifest: StatesManifest) -> None:
        """Read everything once if the files are not those that were verified last; raise if they are damaged."""
        stamps = file_stamps(self._files)
        if stamps == manifest.stamps:
            return
        for chunk in manifest.chunks:
            start = chunk.index * manifest.chunk_rows
            stop = min(start + manifest.chunk_rows, self.n_rows)
            rows = {name: self._files.read(name, start, stop) for name in self._files.layout}
            for name, checksum in checksums(rows).items():
                if checksum != chunk.checksums[name]:
                    raise UnusableStatesError(f"{self._files.path(name)}: {self._damage(rows[name], start)}")
        if self._shared is not None and not bool(self._shared.isfinite().all()):
            raise UnusableStatesError(f"{self.folder}: the state 0 of all items is not finite.")
        with written_whole(self.folder / MANIFEST) as draft:
            replace(manifest, stamps=stamps).write(draft)

    def _damage(self, rows: np.ndarray, start: int) -> str:
        if rows.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
            if len(bad):
                return f"holds a value that is not finite for the item {self._tokens[start + bad[0]]!r}."
        first, last = self._tokens[start], self._tokens[start + len(rows) - 1]
        return f"was changed after it was written, between the items {first!r} and {last!r}."


def origin_of(
    field: str, settings: HiddenStateSettings, stamp_folder: Path
) -> tuple[HiddenStateSettings, Origin, int]:
    """Settings with a pooling, what the states depend on, and their width."""
    kind = kind_of(field)
    shape = Backbone.skeleton(settings.encoder, kind)
    n_layers = len(shape.layers) if settings.layers else 0
    beyond = [layer for layer in settings.layers if not 0 <= layer <= n_layers]
    if beyond:
        raise PerPEFTError(f"cache_layers: {settings.encoder} has the states 0 to {n_layers}, and no {beyond[0]}")
    settings = replace(settings, pooling=shape.check_pooling(settings.pooling))
    processor = load_processor(kind, settings).description
    inputs = {"max_length": processor["text_length"], "tokenizer": processor["tokenizer"]} if kind == "text" else {}
    parts = {
        "fingerprint": weights_fingerprint(locate_encoder(settings.encoder, kind), kind, stamp_folder),
        "quantization": settings.quantization,
        "pooling": settings.pooling,
        "dtype": settings.dtype,
        **(inputs or {"image": processor["image"]}),
    }
    return settings, Origin(settings.encoder, list(settings.layers), parts), shape.width


def folder_name(data_set: str, field: str, settings: HiddenStateSettings) -> str:
    encoder = "-".join(re.split(r"[^\w.]+", settings.encoder.strip("./~"))[-2:])
    return f"{data_set}-{field}-{encoder}-{settings.pooling}-states"
