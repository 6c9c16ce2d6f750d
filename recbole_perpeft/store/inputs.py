"""The cache of processor outputs: pixels and token ids of every item, computed once, memory-mapped."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import alone, put_in_place, written_whole
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.images import digest_of_file
from recbole_perpeft.store.inputs_build import (
    JOURNAL,
    STAMP,
    CacheBuild,
    FinishedChunk,
    Processor,
    damaged_images,
    layout_of,
)
from recbole_perpeft.store.inputs_manifest import FORMAT, Manifest, UnusableCacheError, cache_key, plain
from recbole_perpeft.store.rows import RowFiles, draft_of_cache, rows_of_tokens

# Mapped pages that were read count as memory of the process until they are released.
MAX_MAPPED_BYTES = 128 * 2**20
FAULT_BYTES = 2 * 2**20  # the most that the system maps around a page that is read
MAPS = ("_pixel_map", "_pixels", "_input_ids", "_mask")


class _ChangedImagesError(PerPEFTError):
    """Images are not those that the cache was built from, or their files were only touched or copied."""


class ContentCache:
    """Processor outputs of all items of a data set, one row an item, in the order of its item file.

    A finished cache never changes, so any number of processes may map it. It lies in a folder of its own, named by
    the data set and a hash of tokens, titles and processor; the images it was made from are told by size and times of
    change and, where these differ, by a digest of their bytes, so that a copied data set keeps its cache.

    Attributes:
        folder: where it lies.
        n_rows: number of items.
        text_length: tokens of a text as stored, padding included; None without texts.
        fingerprint: identifies tokens, titles and images.
        damaged: why an image cannot be used, by row.
        has_image: whether an item has an image that could be used, bool [n_rows].
        has_title: whether an item has a title, bool [n_rows].
    """

    def __init__(self, folder: Path, content: ItemContent, processor: Processor, manifest: Manifest):
        self.folder = folder
        self.n_rows = len(content)
        self.text_length = processor.text_length
        self.fingerprint = manifest.fingerprint
        self._tokens = content.tokens
        self._trim_text = processor.trim_text
        self.damaged = damaged_images(manifest.chunks)
        self.has_title = np.array([bool(title.strip()) for title in content.titles])
        self.has_image = np.array([path is not None for path in content.image_paths])
        self.has_image[list(self.damaged)] = False
        self._files = RowFiles(folder, layout_of(processor), self.n_rows)
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which every process makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in MAPS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    @classmethod
    def open(cls, folder: Path, content: ItemContent, processor: Processor) -> "ContentCache":
        """Open a finished cache, which must be one of this content and processor.

        Raises:
            PerPEFTError: it is damaged, of another processor, of other titles, or some images have changed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        described = plain(processor.description)
        if manifest.processor != described:
            names = manifest.processor.keys() | described.keys()
            differing = sorted(name for name in names if manifest.processor.get(name) != described.get(name))
            raise PerPEFTError(
                f"{folder}: is a cache of another processor: {', '.join(differing)} differ. "
                f"Name another cache folder, or delete this one."
            )
        if manifest.key != cache_key(content, processor):
            raise PerPEFTError(
                f"{folder}: is a cache of other items or titles than those of {content.name}. "
                f"Name another cache folder, or delete this one."
            )
        try:
            cache = cls(folder, content, processor, manifest)
            cache._files.check()
            stamps = cache._files.map(STAMP) if STAMP in cache._files.layout else None
        except PerPEFTError as error:
            raise UnusableCacheError(str(error)) from error
        if Manifest.read(folder) != manifest:
            raise _ChangedImagesError(f"{folder}: was replaced while it was opened.")
        n_changed = 0 if stamps is None else int((stamps != content.image_stamps()).any(axis=1).sum())
        if n_changed:
            raise _ChangedImagesError(f"{folder}: {n_changed} images have changed since this cache was built.")
        return cache

    @classmethod
    def open_or_build(
        cls,
        content: ItemContent,
        processor: Processor,
        cache_folder: Path,
        n_workers: int | None = None,
        show_progress: bool = True,
    ) -> "ContentCache":
        """Open the cache of this content and processor; build it first where it is missing, outdated or damaged.

        A build that is killed goes on with the next call. Processes that want the same cache wait for the one that
        builds it.

        Args:
            content: the items.
            processor: the processor of the foundation model.
            cache_folder: folder of caches, shared by data sets and processors.
            n_workers: processes that decode; 0 or 1 works in this process, `None` takes as many as there are cores
            and as
                starting them pays.
            show_progress: whether to show a progress bar.

        Raises:
            PerPEFTError: all that is wrong with titles and images, in one error (see :meth:`ItemContent.check`); the
            disk is
                full; the folder has been replaced by a cache of something else.
        """
        folder = Path(cache_folder) / f"{content.name}-{cache_key(content, processor)[:16]}"
        try:
            cache = cls.open(folder, content, processor)
        except (UnusableCacheError, _ChangedImagesError):
            with alone(folder):
                cache = cls._open_or_build_alone(folder, content, processor, n_workers, show_progress)
        content.check(cache.damaged)
        return cache

    @classmethod
    def _open_or_build_alone(
        cls, folder: Path, content: ItemContent, processor: Processor, n_workers: int | None, show_progress: bool
    ) -> "ContentCache":
        build = CacheBuild(content, processor, draft_of_cache(folder), cache_key(content, processor))
        try:
            return cls.open(folder, content, processor)
        except _ChangedImagesError as change:
            stamps, unchanged = _refreshed_stamps(folder, content, processor)
            if unchanged:
                _replace_stamps(folder, stamps)
                return cls.open(folder, content, processor)
            LOGGER.warning(f"{change} They are processed again.")
            build.seed(folder, stamps, Manifest.read(folder).chunks)
        except UnusableCacheError as problem:
            if folder.exists():
                LOGGER.warning(f"{problem} The cache is built again.")
        if len(content.report):
            LOGGER.warning(
                f"{content.folder}: {len(content.report)} problem(s) so far; the images are read to tell all at once."
            )
        chunks = build.run(n_workers, show_progress)
        if not content.report.may_be_blank:
            build.discard()
            content.check(damaged_images(chunks))
        _finish(build, folder, content, processor, chunks)
        return cls.open(folder, content, processor)

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item; -1 for the pad.

        Args:
            item_tokens: item ids [n], for instance the tokens of RecBole's ids in their order.

        Returns:
            LongTensor [n].

        Raises:
            PerPEFTError: an item is not in the cache.
        """
        return rows_of_tokens(self._tokens, item_tokens, self.folder)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Processor outputs of some items.

        Args:
            rows: LongTensor [n] on the CPU, -1 for the pad, whose outputs are zeros.

        Returns:
            `pixel_values` uint8 [n, 3, H, W], `input_ids` and `attention_mask` int64 [n, T], as far as the processor
            makes them. T is the longest text of the batch if the processor allows it, else the processor's length.
        """
        existing = rows.clamp(min=0)
        batch = {}
        if self._pixels is not None:
            batch["pixel_values"] = self._take_pixels(existing)
        if self._mask is not None:
            batch |= {"input_ids": self._input_ids[existing].long(), "attention_mask": self._mask[existing].long()}
        is_pad = rows < 0
        if is_pad.any():
            for values in batch.values():
                values[is_pad] = 0
        if self._trim_text and self._mask is not None:
            used = batch["attention_mask"].any(dim=0).nonzero()
            length = int(used[-1]) + 1 if len(used) else 1
            for name in ("input_ids", "attention_mask"):
                batch[name] = batch[name][:, :length].contiguous()
        return batch

    def _map(self) -> None:
        names = ("pixel_values", "input_ids", "attention_mask")
        maps = [self._files.map(name) if name in self._files.layout else None for name in names]
        self._pixel_map = maps[0]
        self._pixels, self._input_ids, self._mask = (
            None if array is None else torch.from_numpy(np.asarray(array)) for array in maps
        )

    def _take_pixels(self, rows: Tensor) -> Tensor:
        if self._pixels.nbytes <= MAX_MAPPED_BYTES:
            return self._pixels.index_select(0, rows)
        taken = self._pixels.new_empty(len(rows), *self._pixels.shape[1:])
        n_rows = max(1, MAX_MAPPED_BYTES // max(self._pixels[0].nbytes, FAULT_BYTES))
        for some_rows, place in zip(rows.split(n_rows), taken.split(n_rows), strict=True):
            torch.index_select(self._pixels, 0, some_rows, out=place)
            self._release_pages()
        return taken

    def _release_pages(self) -> None:
        """Unmap the pixels that were read, where there is such a call; they stay in the file cache of the system."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            self._pixel_map.base.madvise(advice)


def _refreshed_stamps(folder: Path, content: ItemContent, processor: Processor) -> tuple[np.ndarray, bool]:
    """Stamps of a cache, renewed for touched or copied but identical images, and whether all images are identical."""
    files = RowFiles(folder, layout_of(processor), len(content))
    stamps, now = np.array(files.map(STAMP)), content.image_stamps()
    digests = files.map("image_digest")
    unchanged = True
    for row in np.flatnonzero((stamps != now).any(axis=1)):
        if np.array_equal(digest_of_file(content.image_paths[row]), digests[row]):
            stamps[row] = now[row]
        else:
            unchanged = False
    return stamps, unchanged


def _replace_stamps(folder: Path, stamps: np.ndarray) -> None:
    with written_whole(folder / f"{STAMP}.npy") as draft, draft.open("wb") as file:
        np.save(file, stamps, allow_pickle=False)


def _finish(
    build: CacheBuild, folder: Path, content: ItemContent, processor: Processor, chunks: list[FinishedChunk]
) -> None:
    """Describe a complete build and give it its final name."""
    state = content.digest()
    if "image_digest" in build.files.layout:
        state.update(build.files.map("image_digest").tobytes())
    manifest = Manifest(
        format=FORMAT,
        data_set=content.name,
        key=cache_key(content, processor),
        fingerprint=state.hexdigest(),
        processor=plain(processor.description),
        n_rows=len(content),
        arrays={name: [dtype, list(shape)] for name, (dtype, shape) in build.files.layout.items()},
        chunks=chunks,
    )
    try:
        manifest.write(build.files.folder)
        put_in_place(build.files.folder, folder)
        (folder / JOURNAL).unlink(missing_ok=True)
    except OSError as error:
        raise build.explained(error) from error
