"""Memory and time of building and reading the content cache.

Memory: the most that building with two workers and then reading everything in random order takes, workers included,
over 1 GiB. Time: building in one process over decoding and processing the same images in a plain loop.
"""

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store.inputs import ContentCache

MEMORY_LIMIT = 0.8
TIME_LIMIT = 1.4
TEXT_LENGTH = 77
N_DRAWN = 64
N_TIMED = 500
BATCH_ROWS = 300


class PlainProcessor:
    """Resizes and crops as the usual processors do; code points as token ids."""

    image_size: tuple[int, int] | None
    text_length: int | None = TEXT_LENGTH
    trim_text = True

    def __init__(self, side: int):
        self.side, self.image_size = side, (side, side)
        self.description = {"name": "plain", "side": side}

    def image(self, image: Image.Image) -> np.ndarray:
        side = self.side
        scale = side / min(image.size)
        width, height = (max(side, round(size * scale)) for size in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + side, top + side))).transpose(2, 0, 1)

    def text(self, titles: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(titles), TEXT_LENGTH), dtype=np.int32)
        for row, title in zip(ids, titles, strict=True):
            codes = np.frombuffer(title.encode("utf-32-le"), dtype=np.int32)[:TEXT_LENGTH]
            row[: len(codes)] = codes
        return ids, (ids > 0).astype(np.uint8)


class PeakMemory:
    """The most memory that this process and its children hold together while the block runs, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.n_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._is_over.wait(0.05):
            total = process.memory_info().rss
            for child in process.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.n_bytes = max(self.n_bytes, total)


def make_data_set(folder: Path, n_items: int) -> ItemContent:
    """Items with photo-like pictures; few are drawn, and each is used by many items."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(N_DRAWN):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        drawn.append(buffer.getvalue())
    (folder / "images").mkdir(parents=True)
    for i in range(n_items):
        (folder / "images" / f"{i}.jpg").write_bytes(drawn[i % N_DRAWN])
    lines = "".join(f"{i}\tthe title of item number {i}\n" for i in range(n_items))
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + lines, encoding="utf-8")
    return ItemContent.load(folder, "shop", [str(i) for i in range(n_items)])


def plain_loop(content: ItemContent, processor: PlainProcessor) -> None:
    for path in content.image_paths:
        assert path is not None
        with Image.open(path) as image:
            processor.image(image.convert("RGB"))
    processor.text(content.titles)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure_memory(content: ItemContent, folder: Path, side: int) -> float:
    """Peak in GiB; prints what the parts take."""
    with PeakMemory() as building:
        start = time.perf_counter()
        cache = ContentCache.open_or_build(content, PlainProcessor(side), folder)
        print(f"built {cache.n_rows} items of {side} px with 2 workers in {time.perf_counter() - start:.1f} s")
    with PeakMemory() as reading:
        times = []
        for rows in torch.randperm(cache.n_rows).split(BATCH_ROWS):
            times.append(seconds(cache.batch, rows))
    print(f"reading {BATCH_ROWS} rows: median {1e3 * np.median(times):.2f} ms")
    print(f"opening again: {seconds(ContentCache.open_or_build, content, PlainProcessor(side), folder):.2f} s")
    print(f"peak memory: building {building.n_bytes / 2**20:.0f} MiB, reading {reading.n_bytes / 2**20:.0f} MiB")
    return max(building.n_bytes, reading.n_bytes) / 2**30


def measure_time(folder: Path, side: int) -> float:
    """Time of building over the time of the plain loop; each the fastest of three, taken in turn."""
    content = make_data_set(folder / "timed", N_TIMED)
    processor = PlainProcessor(side)
    plain, built = [], []
    for turn in range(3):
        plain.append(seconds(plain_loop, content, processor))
        arguments = (content, processor, folder / f"cache{turn}", False)
        built.append(seconds(ContentCache.open_or_build, *arguments))
    print(f"{N_TIMED} items in one process: plain loop {min(plain):.2f} s, building {min(built):.2f} s")
    return min(built) / min(plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    parser.add_argument("--n-items", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    n_items = min(options.n_items, 3_000) if options.quick else options.n_items
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = measure_memory(make_data_set(folder / "shop", n_items), folder / "cache", options.side)
        ratio = measure_time(folder, options.side)
    print(f"content_cache_memory ratio {memory:.3f} limit {MEMORY_LIMIT}")
    print(f"content_cache_time ratio {ratio:.3f} limit {TIME_LIMIT}")
    return int(memory > MEMORY_LIMIT or ratio > TIME_LIMIT)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["LOKY_MAX_CPU_COUNT"] = "2"  # workers
    sys.exit(main())
