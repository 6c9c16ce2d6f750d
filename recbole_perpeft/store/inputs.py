"""The cache of processor outputs: pixels and token ids of every item, computed once, memory-mapped."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from joblib import cpu_count
from joblib.externals.loky import BrokenProcessPool
from PIL import Image
from torch import Tensor

from recbole_perpeft.core.digest import DIGEST_BYTES
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.processes.workers import finished_tasks, process_pool
from recbole_perpeft.core.whole import remove
from recbole_perpeft.data.content import IMAGE, ItemContent
from recbole_perpeft.data.photos.images import process_images
from recbole_perpeft.store.recipe import STAMP, Chunk, ComputedChunk, FinishedChunk, Recipe
from recbole_perpeft.store.rows import Layout, RowFiles
from recbole_perpeft.store.table import Table

FORMAT = "recbole_perpeft content cache, version 1"
PIXELS, IDS, MASK, DIGEST = "pixel_values", "input_ids", "attention_mask", "image_digest"
CHUNK_ROWS = 64
ROWS_WORTH_A_WORKER = 1000
N_TASKS_A_WORKER = 2


class Processor(Protocol):
    """What a cache needs of the processor of a foundation model; it is sent to worker processes."""

    image_size: tuple[int, int] | None  # None without images
    text_length: int | None  # None without texts
    trim_text: bool

    @property
    def description(self) -> dict[str, Any]:
        """What tells it from others."""
        ...

    def image(self, image: Image.Image) -> np.ndarray:
        """RGB image to uint8 [3, H, W]."""
        ...

    def text(self, titles: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Titles to token ids [n, T] and attention mask [n, T]."""
        ...


class ContentCache:
    """Processor outputs of all items of a data set, one row an item, in the order of its item file.

    It lies in a folder of its own, named by the data set and a hash of tokens, titles and processor; the images it was
    made from are told by size and times of change and, where these differ, by a digest of their bytes, so that a
    copied data set keeps its cache.

    Attributes:
        folder: where it lies.
        n_rows: number of items.
        text_length: tokens of a text as stored, padding included; None without texts.
        fingerprint: identifies tokens, titles and images.
        identity: the same, and what the processor makes of them.
        damaged: why an image cannot be used, by row.
    """

    def __init__(self, table: Table, processor: Processor):
        self._table = table
        self.folder = table.folder
        self.n_rows = table.files.n_rows
        self.fingerprint: str = table.values["fingerprint"]
        self.identity = f"{table.values['key']}-{self.fingerprint}"
        self.damaged = table.damaged
        self.text_length = processor.text_length
        self._trims_text = processor.trim_text

    @classmethod
    def open(cls, folder: Path, content: ItemContent, processor: Processor) -> "ContentCache":
        """Open a finished cache, which must be one of this content and processor.

        Raises:
            PerPEFTError: it is damaged, of another processor, of other titles, or some images have changed.
        """
        return cls(Table.open(Path(folder), _InputsRecipe(content, processor)), processor)

    @classmethod
    def open_or_build(
        cls, content: ItemContent, processor: Processor, cache_folder: Path, show_progress: bool = True
    ) -> "ContentCache":
        """Open the cache of this content and processor; build it first where it is missing, outdated or damaged.

        Large caches are built by as many processes as there are cores, or as LOKY_MAX_CPU_COUNT says.

        Args:
            content: the items.
            processor: the processor of the foundation model.
            cache_folder: folder of caches, shared by data sets and processors.
            show_progress: whether to show a progress bar.

        Raises:
            PerPEFTError: all that is wrong with titles and images, in one error (see :meth:`ItemContent.check`); the
                disk is full; the folder has been replaced by a cache of something else.
        """
        folder = Path(cache_folder) / f"{content.name}-{cache_key(content, processor)[:16]}"
        table = Table.open_or_build(folder, _InputsRecipe(content, processor), show_progress)
        content.check(table.damaged)
        return cls(table, processor)

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad.

        Args:
            item_tokens: item ids [n], for instance the tokens of RecBole's ids in their order.

        Raises:
            PerPEFTError: an item is not in the cache.
        """
        return self._table.rows_of(item_tokens)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Processor outputs of some items.

        Args:
            rows: LongTensor [n], -1 for the pad, whose outputs are zeros.

        Returns:
            `pixel_values` uint8 [n, 3, H, W], `input_ids` and `attention_mask` int64 [n, T], as far as the processor
            makes them. T is the longest text of the batch if the processor allows it, else the processor's length.
        """
        names = [name for name in (PIXELS, IDS, MASK) if name in self._table.files.layout]
        batch = {name: self._table.take(name, rows) for name in names}
        if self.text_length is not None:
            batch |= {name: batch[name].long() for name in (IDS, MASK)}
            # An empty text of a tokenizer without special tokens: nothing can be pooled of no token.
            batch[MASK][(rows.cpu() >= 0) & ~batch[MASK].any(1), 0] = 1
            if self._trims_text:
                used = batch[MASK].any(dim=0).nonzero()
                length = int(used[-1]) + 1 if len(used) else 1
                batch |= {name: batch[name][:, :length].contiguous() for name in (IDS, MASK)}
        return batch

    def text_lengths(self, rows: Tensor) -> Tensor | None:
        """Where some items' texts end, int64 [n], 0 for the pad; None where padding is not cut off.

        This is their number of tokens.
        """
        if not self._trims_text:
            return None
        mask = self._table.take(MASK, rows)
        ends = torch.arange(1, mask.shape[1] + 1, dtype=torch.int32)
        return (mask * ends).amax(1).long()


def cache_key(content: ItemContent, processor: Processor) -> str:
    """Identifies tokens, titles and processor."""
    state = content.digest()
    state.update(json.dumps([FORMAT, processor.description, layout_of(processor)], sort_keys=True).encode())
    return state.hexdigest()


def layout_of(processor: Processor) -> Layout:
    """Arrays of a cache: data type and shape of a row. A processor of texts alone never looks at an image."""
    layout: Layout = {}
    if processor.image_size is not None:
        layout[PIXELS] = ("|u1", (3, *processor.image_size))
    if processor.text_length is not None:
        layout |= {IDS: ("<i4", (processor.text_length,)), MASK: ("|u1", (processor.text_length,))}
    if processor.image_size is not None:
        layout |= {DIGEST: ("|u1", (DIGEST_BYTES,)), STAMP: ("<i8", (3,))}
    return layout


def process_chunk(files: RowFiles, processor: Processor, chunk: Chunk) -> FinishedChunk:
    """Write the rows of a chunk. An image that is missing or cannot be used becomes zeros."""
    rows: dict[str, np.ndarray] = {}
    damaged: dict[str, str] = {}
    if processor.image_size is not None:
        images = process_images(chunk.image_paths, processor.image, processor.image_size, limits=chunk.limits)
        rows |= {PIXELS: images.pixels, DIGEST: images.digests, STAMP: images.stamps}
        damaged = {str(chunk.start + place): why for place, why in images.damaged.items()}
    if chunk.texts:
        ids, mask = processor.text(chunk.texts)
        rows |= {IDS: ids.astype("<i4", copy=False), MASK: mask.astype("|u1", copy=False)}
    return ComputedChunk(chunk.index, chunk.start, rows, damaged).write(files)


class _InputsRecipe(Recipe):
    """Pixels and token ids of items, as a processor makes them.

    Args:
        content: The items.
        processor: Makes rows of them.
    """

    format = FORMAT
    digest = DIGEST

    def __init__(self, content: ItemContent, processor: Processor) -> None:
        about = {
            "data_set": content.name,
            "key": cache_key(content, processor),
            "processor": processor.description,
            "n_rows": len(content),
            "arrays": layout_of(processor),
        }
        texts = content.titles if processor.text_length is not None else None
        reads_images = processor.image_size is not None
        super().__init__(content, IMAGE, f"content of {content.name}", about, CHUNK_ROWS, texts, reads_images)
        self._processor = processor

    def layout(self, values: dict[str, Any]) -> Layout:
        """As in `Recipe`; the processor tells it."""
        return layout_of(self._processor)

    def check(self, folder: Path, values: dict[str, Any]) -> None:
        """As in `Recipe`. The folder is named by all of this: where it differs, somebody has moved it here."""
        wanted = self.about["processor"]
        if values["processor"] != wanted:
            names = values["processor"].keys() | wanted.keys()
            differing = sorted(name for name in names if values["processor"].get(name) != wanted.get(name))
            raise PerPEFTError(
                f"{folder}: is a cache of another processor: {', '.join(differing)} differ. "
                f"Name another cache folder, or delete this one."
            )
        if values["key"] != self.about["key"]:
            raise PerPEFTError(
                f"{folder}: is a cache of other items or titles than those of {self.content.name}. "
                f"Name another cache folder, or delete this one."
            )

    def compute(self, files: RowFiles, chunks: list[Chunk]) -> Iterator[FinishedChunk]:
        """As in `Recipe`, in several processes if starting them pays."""
        report = self.content.report
        if len(report):
            LOGGER.warning(
                f"{self.content.folder}: {len(report)} problem(s) so far; the images are read to tell all at once."
            )
        n_workers = min(cpu_count(), sum(len(chunk.tokens) for chunk in chunks) // ROWS_WORTH_A_WORKER)
        if n_workers > 1:
            return _process_in_workers(files, self._processor, chunks, n_workers)
        return (process_chunk(files, self._processor, chunk) for chunk in chunks)

    def finish(self, files: RowFiles, chunks: Sequence[FinishedChunk]) -> dict[str, Any]:
        """The fingerprint of content and images; of content that nothing may stand in for, no row is kept."""
        if not self.content.report.may_be_blank:
            remove(files.folder)
            self.content.check({int(row): why for chunk in chunks for row, why in chunk.damaged.items()})
        state = self.content.digest()
        if self.reads_images:
            state.update(files.read(DIGEST, 0, files.n_rows).tobytes())
        return {"fingerprint": state.hexdigest()}


def _process_in_workers(
    files: RowFiles, processor: Processor, chunks: list[Chunk], n_workers: int
) -> Iterator[FinishedChunk]:
    """Results in the order in which they come."""
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    executor = process_pool(n_workers, environment, _start_worker, (files, processor))
    try:
        yield from finished_tasks(executor, _process_in_worker, chunks, N_TASKS_A_WORKER * n_workers)
    except BrokenProcessPool as error:
        raise PerPEFTError(
            f"{files.folder}: a worker process died, perhaps for lack of memory ({error}). Run again with "
            f"LOKY_MAX_CPU_COUNT={n_workers // 2}, the number of workers: what is done is kept."
        ) from error


class _Worker:
    """What a worker process keeps between chunks."""

    files: RowFiles
    processor: Processor


def _start_worker(files: RowFiles, processor: Processor) -> None:
    _Worker.files, _Worker.processor = files, processor


def _process_in_worker(chunk: Chunk) -> FinishedChunk:
    return process_chunk(_Worker.files, _Worker.processor, chunk)
