"""Filling a cache of hidden states chunk by chunk, resumable after a kill."""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recbole_perpeft.core.digest import DIGEST_BYTES, checksum
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import Journal, put_in_place, remove
from recbole_perpeft.data.content import IMAGE, ItemContent
from recbole_perpeft.store.encode import (
    DIGEST,
    FINAL,
    FIRST_STATE,
    STATES,
    EncodedChunk,
    HiddenStateSettings,
    StateChunk,
    StateEncoder,
    kind_of,
    text_digests,
)
from recbole_perpeft.store.inputs_build import JOURNAL, STAMP
from recbole_perpeft.store.rows import RowFiles
from recbole_perpeft.store.states_manifest import FORMAT, MANIFEST, FinishedStates, Origin, StatesManifest

# Texts are sorted by length within a chunk: the more batches, the less padding, and the more is lost in a kill.
BATCHES_A_CHUNK = 8
SHARED_STATE = "shared_state_0.npy"
COMPARED_ROWS = 1024

Layout = dict[str, tuple[str, tuple[int, ...]]]


def layout_of(kind: str, origin: Origin, width: int, is_first_shared: bool = False) -> Layout:
    """Arrays of a cache: data type and shape of a row."""
    dtype = np.dtype(origin.parts["dtype"]).newbyteorder("<").str
    n_blocks = len(origin.layers) - (0 in origin.layers)
    layout: Layout = {DIGEST: ("|u1", (DIGEST_BYTES,)), FINAL: (dtype, (width,))}
    if kind == IMAGE:
        layout[STAMP] = ("<i8", (3,))
    if n_blocks:
        layout[STATES] = (dtype, (n_blocks, width))
    if 0 in origin.layers and not is_first_shared:
        layout[FIRST_STATE] = (dtype, (width,))
    return layout


def read_shared_state(folder: Path, width: int) -> np.ndarray:
    """State 0 where it is the same for all items, [width]."""
    path = folder / SHARED_STATE
    try:
        state = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PerPEFTError(f"{path}: not a complete array ({error}).") from error
    if state.shape != (width,):
        raise PerPEFTError(f"{path}: holds {state.shape}, not {(width,)}.")
    return state


def file_stamps(files: RowFiles) -> dict[str, list[int]]:
    """Size and time of change of every array but the stamps of images, which are renewed for untouched states."""
    status = {name: files.path(name).stat() for name in files.layout if name != STAMP}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()}


def checksums(rows: dict[str, np.ndarray]) -> dict[str, int]:
    """CRC-32 of every array but the stamps of images."""
    return {name: checksum([values]) for name, values in rows.items() if name != STAMP}


class StatesBuild:
    """The building of one cache in a folder of its own, which survives a kill and is continued by the next run.

    Args:
        content: the items.
        field: field of the items.
        settings: with a pooling.
        origin: what the states depend on.
        width: size of a state.
        folder: where to build; it is made if it does not exist. A folder of another origin is built anew.
    """

    def __init__(
        self, content: ItemContent, field: str, settings: HiddenStateSettings, origin: Origin, width: int, folder: Path
    ):
        self._content = content
        self._field = field
        self._settings = settings
        self._origin = origin
        self._width = width
        self._folder = folder
        self._kind = kind_of(field)
        self._chunk_rows = BATCHES_A_CHUNK * settings.batch_size
        self._journal = Journal(folder / JOURNAL)
        self._digests = None if self._kind == IMAGE else text_digests(content.texts[field])
        self.files = RowFiles(folder, layout_of(self._kind, origin, width), len(content))

    def run(self, show_progress: bool) -> None:
        """Compute what is not on the disk yet, and describe the whole.

        Raises:
            PerPEFTError: a state is not finite, or the disk is full.
        """
        try:
            finished = self._resume()
            todo = [chunk for chunk in self._chunks() if chunk.index not in finished]
            n_todo = sum(len(chunk.tokens) for chunk in todo)
            with tqdm(
                total=len(self._content),
                initial=len(self._content) - n_todo,
                desc=f"Hidden states of {self._content.name} ({self._field}, {Path(self._settings.encoder).name})",
                unit="item",
                disable=not show_progress,
                dynamic_ncols=True,
            ) as bar:
                for encoded in self.encoded(todo):
                    finished[encoded.index] = self._store(encoded)
                    bar.update(len(encoded.rows[FINAL]))
            self._describe([finished[index] for index in sorted(finished)])
        except OSError as error:
            raise self._explained(error) from error

    def move_to(self, folder: Path) -> None:
        """Give the complete build its final name; what only its continuation needs goes last."""
        try:
            put_in_place(self._folder, folder)
            (folder / JOURNAL).unlink(missing_ok=True)
            if (folder / SHARED_STATE).exists():
                (folder / self.files.path(FIRST_STATE).name).unlink(missing_ok=True)
        except OSError as error:
            raise self._explained(error) from error

    def seed(self, source: Path, manifest: StatesManifest) -> None:
        """Start from a finished cache of which some texts or images have changed: the other chunks stay.

        Args:
            source: folder of that cache, which has the same items and the same layers.
            manifest: what it holds.
        """
        if manifest.chunk_rows != self._chunk_rows or manifest.origin != self._origin:
            return
        try:
            self._start()
            layout = layout_of(self._kind, self._origin, self._width, manifest.is_first_shared)
            old = RowFiles(source, layout, len(self._content))
            for chunk in manifest.chunks:
                start, stop = self._range(chunk.index)
                rows = {name: old.read(name, start, stop) for name in layout}
                if manifest.is_first_shared:
                    shared = read_shared_state(source, self._width)
                    rows[FIRST_STATE] = np.broadcast_to(shared, (stop - start, self._width))
                if self._is_current(rows, start, stop):
                    self.files.write(start, rows)
                    self._journal.add([asdict(FinishedStates(chunk.index, checksums(rows), chunk.damaged))])
        except OSError as error:
            raise self._explained(error) from error

    def encoded(self, chunks: list[StateChunk]) -> Iterator[EncodedChunk]:
        if not chunks:
            return iter(())
        if self._settings.engine == "ray":
            from recbole_perpeft.store.ray_workers import encode_with_ray

            return encode_with_ray(self._kind, self._settings, chunks)
        return StateEncoder(self._kind, self._settings).encode(chunks)

    def _store(self, encoded: EncodedChunk) -> FinishedStates:
        self.files.write(encoded.start, encoded.rows)
        record = FinishedStates(encoded.index, checksums(encoded.rows), encoded.damaged)
        self._journal.add([asdict(record)])
        return record

    def _header(self) -> dict:
        tokens = text_digests(["\t".join(self._content.tokens)]).tobytes().hex()
        return {"origin": asdict(self._origin), "tokens": tokens, "chunk_rows": self._chunk_rows}

    def _start(self) -> None:
        remove(self._folder)
        self._folder.mkdir(parents=True)
        self.files.create()
        self._journal.start(self._header())

    def _resume(self) -> dict[int, FinishedStates]:
        """Chunks of an earlier run that are whole and whose texts or images have not changed since."""
        entries = self._journal.resume(self._header())
        if entries is None or not self.files.are_complete():
            self._start()
            return {}
        chunks = {entry["index"]: FinishedStates(**entry) for entry in entries}
        return {index: chunk for index, chunk in chunks.items() if self._is_whole(chunk)}

    def _is_whole(self, chunk: FinishedStates) -> bool:
        start, stop = self._range(chunk.index)
        rows = {name: self.files.read(name, start, stop) for name in self.files.layout}
        return checksums(rows) == chunk.checksums and self._is_current(rows, start, stop)

    def _is_current(self, rows: dict[str, np.ndarray], start: int, stop: int) -> bool:
        if self._digests is not None:
            return np.array_equal(rows[DIGEST], self._digests[start:stop])
        return np.array_equal(rows[STAMP], self._content.image_stamps(slice(start, stop)))

    def _range(self, index: int) -> tuple[int, int]:
        return index * self._chunk_rows, min((index + 1) * self._chunk_rows, len(self._content))

    def _chunks(self) -> Iterable[StateChunk]:
        content, is_image = self._content, self._kind == IMAGE
        for start in range(0, len(content), self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            yield StateChunk(
                start // self._chunk_rows,
                start,
                content.tokens[rows],
                None if is_image else content.texts[self._field][rows],
                content.image_paths[rows] if is_image else None,
            )

    def _describe(self, chunks: list[FinishedStates]) -> None:
        """Keep a constant state 0 once, and write the manifest."""
        is_shared = FIRST_STATE in self.files.layout and self._is_first_constant()
        if is_shared:
            np.save(self._folder / SHARED_STATE, self.files.read(FIRST_STATE, 0, 1)[0], allow_pickle=False)
        layout = layout_of(self._kind, self._origin, self._width, is_shared)
        kept = RowFiles(self._folder, layout, len(self._content))
        kept.sync()
        StatesManifest(
            format=FORMAT,
            data_set=self._content.name,
            field=self._field,
            origin=self._origin,
            tokens=self._content.tokens,
            width=self._width,
            is_first_shared=is_shared,
            chunk_rows=self._chunk_rows,
            chunks=chunks,
            stamps=file_stamps(kept),
        ).write(self._folder / MANIFEST)

    def _is_first_constant(self) -> bool:
        """Whether state 0 differs between items by no more than rounding, as that of a class token does."""
        first = self.files.read(FIRST_STATE, 0, 1).astype(np.float32)
        tolerance = 4 * np.finfo(self._settings.dtype).eps * np.abs(first).max()
        n = len(self._content)
        return n > 1 and all(
            np.abs(self.files.read(FIRST_STATE, start, min(start + COMPARED_ROWS, n)) - first).max() <= tolerance
            for start in range(0, n, COMPARED_ROWS)
        )

    def _explained(self, error: OSError) -> PerPEFTError:
        """The error to raise instead; nothing is left behind on a full disk."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            name = error.filename or self._folder
            return PerPEFTError(f"{name}: {error.strerror or error}; the hidden states cannot be written.")
        remove(self._folder)
        megabytes = self.files.n_bytes() / 2**20
        return PerPEFTError(
            f"{self._folder.parent}: the disk is full; the hidden states of {self._content.name} need "
            f"{megabytes:,.0f} MiB. Free space, name a cache folder on another disk, or keep fewer layers."
        )
