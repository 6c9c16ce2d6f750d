"""The image folder of a data set: images verified, made smaller if asked for, in several processes, resumable."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

from joblib import cpu_count
from joblib.externals.loky import BrokenProcessPool
from PIL import Image
from tqdm import tqdm

from recbole_perpeft.convert.reading.image_files import ImageReference
from recbole_perpeft.core.digest import sha256
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes.workers import finished_tasks, process_pool
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.core.whole import Journal, remove, written_whole
from recbole_perpeft.data.photos.apart import Apart, ApartError, damaged
from recbole_perpeft.data.photos.decode import DECODING, DamagedImageError

JOURNAL = "journal.jsonl"
CHUNK_IMAGES = 32
IMAGES_WORTH_A_WORKER = 500
N_TASKS_A_WORKER = 2
LONGEST_CHUNK = 300  # seconds
JPEG_QUALITY = 92
MAX_STEM = 150
_PLAIN_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# How the files begin that stay as they are; others are encoded anew.
_SIGNATURES = {"jpg": re.compile(rb"\xff\xd8\xff"), "png": re.compile(rb"\x89PNG\r\n\x1a\n")}
_SIGNATURES["webp"] = re.compile(rb"RIFF....WEBP", re.DOTALL)


class UnfinishedImagesError(PerPEFTError):
    """Images could not be finished; those that are done are kept for the next run."""


@dataclass(frozen=True)
class FinishedImage:
    """A line of the journal.

    Attributes:
        token: id of the item.
        stamp: of the image it was made from.
        file: name of the file; empty if the image cannot be used.
        digest: SHA-256 of the file.
        problem: why the image cannot be used.
    """

    token: str
    stamp: str
    file: str = ""
    digest: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ImageWriter:
    """Writes images into a folder.

    Args:
        folder: where to.
        max_side: longest side in pixels; larger images are made smaller. `None` leaves all sizes.
        limits: of decoding.
    """

    folder: Path
    max_side: int | None
    limits: PhotoLimits = USUAL_LIMITS

    def write(self, token: str, reference: ImageReference) -> FinishedImage:
        """Verify an image by decoding it wholly, and write it; as it is where possible."""
        stamp = reference.stamp()
        try:
            data, image = reference.load(self.limits)
        except DamagedImageError as error:
            return FinishedImage(token, stamp, problem=str(error))
        suffix = None if data is None else _suffix_of(data)
        is_large = self.max_side is not None and max(image.size) > self.max_side
        if data is None or suffix is None or is_large:
            data, suffix, source = _encoded(image, self.max_side), "jpg", None
        else:
            source = reference.file()
        name = f"{file_stem(token)}.{suffix}"
        self._place(self.folder / name, data, source)
        return FinishedImage(token, stamp, name, sha256(data))

    def _place(self, target: Path, data: bytes, source: Path | None) -> None:
        with written_whole(target) as draft:
            if source is None or not _linked(source, draft):
                draft.write_bytes(data)


def file_stem(token: str) -> str:
    """Name of an item's image file without its suffix: the id if it can be one, otherwise percent-encoded."""
    if len(token) <= MAX_STEM and _PLAIN_STEM.fullmatch(token):
        return token
    stem = quote(token, safe="").replace(".", "%2E")
    return stem if len(stem) <= MAX_STEM else "%" + sha256(token.encode())


def _suffix_of(data: bytes) -> str | None:
    return next((suffix for suffix, signature in _SIGNATURES.items() if signature.match(data)), None)


def _encoded(image: Image.Image, max_side: int | None) -> bytes:
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _linked(source: Path, target: Path) -> bool:
    target.unlink()
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or a file system without links
        return False
    return True


def convert_images(
    references: dict[str, ImageReference],
    folder: Path,
    max_side: int | None = None,
    n_workers: int | None = None,
    show_progress: bool = False,
    limits: PhotoLimits = USUAL_LIMITS,
) -> list[FinishedImage]:
    """Write the images of items, and go on where an earlier run with the same settings stopped.

    Args:
        references: images by item id.
        folder: where to; it also gets a journal, which the caller removes.
        max_side: see `ImageWriter`.
        n_workers: processes; by default as many as there are cores and as starting them pays.
        show_progress: show a bar.
        limits: of decoding.

    Returns:
        One result an item, in the order of `references`.

    Raises:
        UnfinishedImagesError: a worker process died.
        PerPEFTError: a file that is mapped into memory is damaged.
        OSError: the disk does not take it.
    """
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / JOURNAL)
    writer = ImageWriter(folder, max_side, limits)
    finished = _resumed(journal, references, writer)
    todo = [item for item in references.items() if item[0] not in finished]
    bar = tqdm(total=len(references), initial=len(finished), desc="Images", unit="image", disable=not show_progress)
    with bar:
        for results in _in_chunks(writer, todo, _usable_workers(n_workers, len(todo))):
            finished |= {result.token: result for result in results}
            journal.add(map(asdict, results))
            bar.update(len(results))
    return [finished[token] for token in references]


def _resumed(journal: Journal, references: dict[str, ImageReference], writer: ImageWriter) -> dict[str, FinishedImage]:
    """Results of an earlier run whose images have not changed since; the journal is left with these alone."""
    folder, finished = writer.folder, {}
    header = {"max_side": writer.max_side, "decoding": DECODING, "limits": asdict(writer.limits)}
    for result in (FinishedImage(**entry) for entry in journal.resume(header) or ()):
        reference = references.get(result.token)
        is_there = not result.file or (folder / result.file).is_file()
        if reference is not None and reference.stamp() == result.stamp and is_there:
            finished[result.token] = result
    kept = {result.file for result in finished.values()}
    for path in folder.iterdir():
        if path.name not in kept:
            remove(path)
    journal.start(header, map(asdict, finished.values()))
    return finished


def _usable_workers(n_workers: int | None, n_images: int) -> int:
    return min(cpu_count(), n_images // IMAGES_WORTH_A_WORKER) if n_workers is None else n_workers


def _in_chunks(
    writer: ImageWriter, todo: list[tuple[str, ImageReference]], n_workers: int
) -> Iterator[list[FinishedImage]]:
    chunks = [todo[start : start + CHUNK_IMAGES] for start in range(0, len(todo), CHUNK_IMAGES)]
    mapped = next((path for _, reference in todo if (path := reference.mapped())), None)
    if mapped is not None:
        yield from _apart(writer, chunks, max(1, n_workers), mapped)
        return
    if n_workers < 2:
        yield from (_write_chunk(writer, chunk) for chunk in chunks)
        return
    try:
        yield from _in_workers(writer, chunks, n_workers)
    except BrokenProcessPool as error:
        raise UnfinishedImagesError(
            f"a worker process died, perhaps for lack of memory ({error}). Run again with fewer --workers: the images "
            "that are done are kept"
        ) from error


def _in_workers(
    writer: ImageWriter, chunks: Iterable[list[tuple[str, ImageReference]]], n_workers: int
) -> Iterator[list[FinishedImage]]:
    executor = process_pool(n_workers, {"OMP_NUM_THREADS": "1"})
    write = functools.partial(_write_chunk, writer)
    yield from finished_tasks(executor, write, chunks, N_TASKS_A_WORKER * n_workers)


def _apart(
    writer: ImageWriter, chunks: list[list[tuple[str, ImageReference]]], n_children: int, mapped: Path
) -> Iterator[list[FinishedImage]]:
    """Results in the order of the chunks, from child processes that a damaged file may end or keep busy."""
    children = SimpleQueue[Apart]()
    for _ in range(n_children):
        children.put(Apart(LONGEST_CHUNK))

    def write(chunk: list[tuple[str, ImageReference]]) -> list[FinishedImage]:
        child = children.get()
        try:
            return child(_write_chunk, writer, chunk)
        finally:
            children.put(child)

    threads = ThreadPoolExecutor(n_children)
    try:
        yield from threads.map(write, chunks)
    except ApartError as error:
        raise PerPEFTError(damaged(mapped, error)) from error
    finally:
        threads.shutdown(cancel_futures=True)


def _write_chunk(writer: ImageWriter, chunk: list[tuple[str, ImageReference]]) -> list[FinishedImage]:
    return [writer.write(token, reference) for token, reference in chunk]
