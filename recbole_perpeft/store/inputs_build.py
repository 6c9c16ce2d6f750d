"""Filling a content cache: decoding, processing and tokenising, chunk by chunk, in several processes, resumable.

The modules that workers import for this are light: torch comes in only if the processor brings it.
"""

import errno
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from joblib import cpu_count
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor
from PIL import Image
from tqdm import tqdm

from recbole_perpeft.core.digest import DIGEST_BYTES, checksum
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import Journal, remove
from recbole_perpeft.core.workers import finished_tasks
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.images import (
    DamagedImageError,
    decode_image,
    file_stamp,
    image_digest,
    read_image_file,
)
from recbole_perpeft.store.rows import RowFiles

CHUNK_ROWS = 64
ROWS_WORTH_A_WORKER = 1000
STAMP = "image_stamp"
JOURNAL = "journal.jsonl"
N_TASKS_A_WORKER = 2


class Processor(Protocol):
    """What a cache needs of the processor of a foundation model; it is sent to worker processes."""

    image_size: tuple[int, int] | None  # None without images
    text_length: int | None  # None without texts
    trim_text: bool
    description: dict[str, Any]

    def image(self, image: Image.Image) -> np.ndarray:
        """RGB image to uint8 [3, H, W]."""
        ...

    def text(self, titles: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Titles to token ids [n, T] and attention mask [n, T]."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Items of consecutive rows, to be processed by one worker in one go."""

    index: int
    titles: list[str]
    image_paths: list[Path | None]

    @property
    def start(self) -> int:
        return self.index * CHUNK_ROWS


@dataclass(frozen=True)
class FinishedChunk:
    """A line of the journal: a chunk on the disk.

    Attributes:
        index: which chunk.
        checksum: of all its rows, stamps of images apart. It tells a chunk that a power failure kept from the disk.
        damaged: why an image cannot be used, by row.
    """

    index: int
    checksum: int
    damaged: dict[str, str]


def layout_of(processor: Processor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Arrays of a cache: data type and shape of a row. A processor of texts alone never looks at an image."""
    has_images, has_texts = processor.image_size is not None, processor.text_length is not None
    return {
        **({"pixel_values": ("|u1", (3, *processor.image_size))} if has_images else {}),
        **({"input_ids": ("<i4", (processor.text_length,))} if has_texts else {}),
        **({"attention_mask": ("|u1", (processor.text_length,))} if has_texts else {}),
        **({"image_digest": ("|u1", (DIGEST_BYTES,)), STAMP: ("<i8", (3,))} if has_images else {}),
    }


def process_chunk(files: RowFiles, processor: Processor, chunk: Chunk) -> FinishedChunk:
    """Write the rows of a chunk. An image that is missing or cannot be used becomes zeros."""
    n = len(chunk.titles)
    rows = {name: np.zeros((n, *shape), dtype=dtype) for name, (dtype, shape) in files.layout.items()}
    damaged = _process_images(rows, processor, chunk) if STAMP in rows else {}
    if "input_ids" in rows:
        rows["input_ids"][:], rows["attention_mask"][:] = processor.text(chunk.titles)
    files.write(chunk.start, rows)
    return FinishedChunk(chunk.index, _checksum(rows), damaged)


def _process_images(rows: dict[str, np.ndarray], processor: Processor, chunk: Chunk) -> dict[str, str]:
    """Fill the rows of images; why an image cannot be used, by row."""
    damaged: dict[str, str] = {}
    for i, path in enumerate(chunk.image_paths):
        # Before the file is read: should it change meanwhile, the older stamp makes the next opening look again.
        rows[STAMP][i] = file_stamp(path)
        if path is None:
            continue
        try:
            data = read_image_file(path)
            rows["image_digest"][i] = image_digest(data)
            rows["pixel_values"][i] = _process_image(processor, decode_image(data), path)
        except DamagedImageError as error:
            damaged[str(chunk.start + i)] = str(error)
    return damaged


def _process_image(processor: Processor, image: Image.Image, path: Path) -> np.ndarray:
    try:
        return processor.image(image)
    except ValueError as error:
        raise PerPEFTError(f"{path}: the processor fails on this image of {image.size} pixels: {error}") from error


def _checksum(rows: dict[str, np.ndarray]) -> int:
    """CRC-32 of all arrays but the stamps, which are renewed where identical files were only touched."""
    return checksum(values for name, values in rows.items() if name != STAMP)


def damaged_images(chunks: Iterable[FinishedChunk]) -> dict[int, str]:
    """Why an image cannot be used, by row."""
    return {int(row): reason for chunk in chunks for row, reason in chunk.damaged.items()}


class CacheBuild:
    """The building of one cache in a folder of its own, which survives a kill and is continued by the next run.

    Args:
        content: the items.
        processor: what makes rows of them.
        folder: where to build; it is made if it does not exist.
        key: identifies titles and processor; a folder of another key is built anew.
    """

    def __init__(self, content: ItemContent, processor: Processor, folder: Path, key: str):
        self._content = content
        self._processor = processor
        self._folder = folder
        self._journal = Journal(folder / JOURNAL)
        self._header = {"key": key, "chunk_rows": CHUNK_ROWS}
        self.files = RowFiles(folder, layout_of(processor), len(content))

    def run(self, n_workers: int | None, show_progress: bool) -> list[FinishedChunk]:
        """Process what is not on the disk yet; all chunks, in their order.

        Raises:
            PerPEFTError: the disk is full (the folder is removed) or a worker died (the next run continues).
        """
        try:
            finished = self._resume()
            todo = [chunk for chunk in self._chunks() if chunk.index not in finished]
            n_rows_todo = sum(len(chunk.titles) for chunk in todo)
            with tqdm(
                total=len(self._content),
                initial=len(self._content) - n_rows_todo,
                desc=f"Content of {self._content.name}",
                unit="item",
                disable=not show_progress,
                dynamic_ncols=True,
            ) as bar:
                for result in self._process(todo, _usable_workers(n_workers, n_rows_todo)):
                    finished[result.index] = result
                    self._journal.add([asdict(result)])
                    bar.update(min(CHUNK_ROWS, len(self._content) - result.index * CHUNK_ROWS))
            self.files.sync()
        except OSError as error:
            raise self.explained(error) from error
        return [finished[index] for index in sorted(finished)]

    def seed(self, source: Path, stamps: np.ndarray, finished: Iterable[FinishedChunk]) -> None:
        """Start from a finished cache of the same titles and processor, of which some images have changed.

        Args:
            source: folder of that cache.
            stamps: stamps of the images it holds, int64 [n_rows, 3]; chunks of other images are processed again.
            finished: its chunks.
        """
        try:
            self._start()
            for name in self.files.layout:
                shutil.copyfile(source / f"{name}.npy", self.files.path(name))
            self.files.write(0, {STAMP: stamps})
            self._journal.add(asdict(chunk) for chunk in finished)
        except OSError as error:
            raise self.explained(error) from error

    def discard(self) -> None:
        remove(self._folder)

    def _start(self) -> None:
        self.discard()
        self._folder.mkdir(parents=True)
        self.files.create()
        self._journal.start(self._header)

    def _resume(self) -> dict[int, FinishedChunk]:
        """Chunks of an earlier run that are whole and whose images have not changed since."""
        entries = self._journal.resume(self._header)
        if entries is None or not self.files.are_complete():
            self._start()
            return {}
        now = self._content.image_stamps() if STAMP in self.files.layout else None
        chunks = {entry["index"]: FinishedChunk(**entry) for entry in entries}
        return {index: chunk for index, chunk in chunks.items() if self._is_whole(index, chunk, now)}

    def _is_whole(self, index: int, chunk: FinishedChunk, now: np.ndarray | None) -> bool:
        start, stop = index * CHUNK_ROWS, min((index + 1) * CHUNK_ROWS, len(self._content))
        rows = {name: self.files.read(name, start, stop) for name in self.files.layout}
        same_images = now is None or np.array_equal(rows[STAMP], now[start:stop])
        return same_images and _checksum(rows) == chunk.checksum

    def _chunks(self) -> Iterator[Chunk]:
        for start in range(0, len(self._content), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            yield Chunk(start // CHUNK_ROWS, self._content.titles[rows], self._content.image_paths[rows])

    def _process(self, chunks: list[Chunk], n_workers: int) -> Iterator[FinishedChunk]:
        if n_workers < 2:
            for chunk in chunks:
                yield process_chunk(self.files, self._processor, chunk)
            return
        try:
            yield from _process_in_workers(self.files, self._processor, chunks, n_workers)
        except BrokenProcessPool as error:
            raise PerPEFTError(
                f"{self._folder}: a worker process died, perhaps for lack of memory ({error}). "
                f"Run again with fewer workers: what is done is kept."
            ) from error

    def explained(self, error: OSError) -> PerPEFTError:
        """The error to raise instead; nothing is left behind on a full disk."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return PerPEFTError(
                f"{error.filename or self._folder}: {error.strerror or error}; the cache cannot be written."
            )
        self.discard()
        megabytes = self.files.n_bytes() / 2**20
        return PerPEFTError(
            f"{self._folder.parent}: the disk is full; the cache of {self._content.name} needs {megabytes:,.0f} MiB. "
            f"Free space or name a cache folder on another disk."
        )


def _usable_workers(n_workers: int | None, n_rows: int) -> int:
    """As asked for, or as many as there are cores and as starting them pays."""
    if n_workers is not None:
        return n_workers
    return min(cpu_count(), n_rows // ROWS_WORTH_A_WORKER)


def _process_in_workers(
    files: RowFiles, processor: Processor, chunks: list[Chunk], n_workers: int
) -> Iterator[FinishedChunk]:
    """Results in the order in which they come.

    loky starts processes that neither share the threads of torch, as forked ones do, nor import the user's script
    again, as spawned ones do: a script needs no `__main__` guard.
    """
    executor = ProcessPoolExecutor(
        n_workers,
        timeout=20,  # an idle worker ends, and so do those whose parent was killed
        initializer=_start_worker,
        initargs=(files, processor),
        env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    yield from finished_tasks(executor, _process_in_worker, chunks, N_TASKS_A_WORKER * n_workers)


class _Worker:
    """What a worker process keeps between chunks."""

    files: RowFiles
    processor: Processor


def _start_worker(files: RowFiles, processor: Processor) -> None:
    _Worker.files, _Worker.processor = files, processor


def _process_in_worker(chunk: Chunk) -> FinishedChunk:
    return process_chunk(_Worker.files, _Worker.processor, chunk)
