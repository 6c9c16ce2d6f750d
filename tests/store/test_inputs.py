import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data import images as images_module
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store import inputs_build as cache_build
from recbole_perpeft.store.inputs import ContentCache
from recbole_perpeft.store.inputs_manifest import cache_key
from support import small_processor as processors

# Worker processes and scripts import the processors by name.
SmallProcessor = processors.SmallProcessor

ARRAYS = ("pixel_values", "input_ids", "attention_mask", "image_digest")


def draw(path, seed, size=(20, 15), **options):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)


def make_items(folder, n=5):
    images = folder / "images"
    images.mkdir(parents=True)
    for i in range(n):
        draw(images / f"é{i}.png", i)
    write_table(folder, [(f"é{i}", f"Größe {i}") for i in range(n)])
    return folder


def write_table(folder, rows):
    lines = "".join(f"{token}\t{title}\n" for token, title in rows)
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + lines, encoding="utf-8")


def load(folder, tokens=(), missing_content="error"):
    return ItemContent.load(folder, "shop", tokens, missing_content)


def open_or_build(folder, missing_content="error", processor=None, n_workers=0, tokens=()):
    return ContentCache.open_or_build(
        load(folder, tokens, missing_content),
        processor or SmallProcessor(),
        folder.parent / "cache",
        n_workers,
        show_progress=False,
    )


def arrays_of(cache):
    return {name: (cache.folder / f"{name}.npy").read_bytes() for name in (*ARRAYS, "image_stamp")} | {
        "manifest": (cache.folder / "manifest.json").read_text()
    }


@pytest.fixture
def shop(tmp_path):
    return make_items(tmp_path / "shop")


@pytest.fixture
def decoded(monkeypatch):
    """Paths of images that were processed, in order."""
    processed = []
    original = cache_build._process_image

    def record(processor, image, path):
        processed.append(path.name)
        return original(processor, image, path)

    monkeypatch.setattr(cache_build, "_process_image", record)
    return processed


def test_rows_are_what_the_processor_makes(shop):
    cache, processor = open_or_build(shop), SmallProcessor()
    batch = cache.batch(torch.tensor([3, -1, 0, 3]))
    for position, row in ((0, 3), (2, 0), (3, 3)):
        with Image.open(shop / "images" / f"é{row}.png") as image:
            expected = processor.image(image.convert("RGB"))
        np.testing.assert_array_equal(batch["pixel_values"][position].numpy(), expected)
        ids, mask = processor.text([f"Größe {row}"])
        np.testing.assert_array_equal(batch["input_ids"][position].numpy(), ids[0, :7])
        np.testing.assert_array_equal(batch["attention_mask"][position].numpy(), mask[0, :7])
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert not any(values[1].any() for values in batch.values())
    assert cache.n_rows == 5 and cache.has_image.all() and cache.has_title.all()


def test_text_is_trimmed_only_if_the_processor_allows(shop):
    pads = torch.tensor([-1, -1])
    assert open_or_build(shop).batch(pads)["input_ids"].shape == (2, 1)
    cache = open_or_build(shop, processor=SmallProcessor(trim_text=False))
    assert cache.batch(torch.tensor([0]))["input_ids"].shape == (1, 10)
    assert cache.batch(torch.tensor([], dtype=torch.long))["pixel_values"].shape == (0, 3, 6, 8)


def test_rows_of_tokens(shop):
    cache = open_or_build(shop)
    assert cache.rows_of(np.array(["[PAD]", "é4", "é0"])).tolist() == [-1, 4, 0]
    with pytest.raises(PerPEFTError, match="no item 'é9'"):
        cache.rows_of(["é9"])


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_an_image_that_becomes_readable_is_noticed(shop, monkeypatch):
    path = shop / "images" / "é1.png"
    path.chmod(0)
    with monkeypatch.context() as refused:  # a superuser may read everything
        original = open

        def refuse(file, *options, **named):
            if file == path:
                raise PermissionError(errno.EACCES, "Permission denied")
            return original(file, *options, **named)

        refused.setattr(images_module, "open", refuse, raising=False)
        for _ in range(2):
            with pytest.raises(PerPEFTError, match=r"'é1' \(images/é1.png: cannot be read: Permission denied"):
                open_or_build(shop)
    path.chmod(0o644)
    assert open_or_build(shop).has_image.all()


def test_second_opening_decodes_nothing(shop, decoded):
    first = open_or_build(shop)
    assert len(decoded) == 5
    second = open_or_build(shop)
    assert len(decoded) == 5 and second.fingerprint == first.fingerprint and second.folder == first.folder
    assert sorted(path.suffix for path in first.folder.parent.iterdir()) == ["", ".lock"]


def test_reading_releases_pages_and_stays_right(shop, monkeypatch):
    monkeypatch.setattr("recbole_perpeft.store.inputs.MAX_MAPPED_BYTES", 100)
    cache = open_or_build(shop)
    first = cache.batch(torch.arange(5))["pixel_values"]
    assert torch.equal(cache.batch(torch.arange(5))["pixel_values"], first) and first.any()


def test_a_pickled_cache_maps_the_same_files(shop):
    cache = open_or_build(shop)
    data = pickle.dumps(cache)
    assert len(data) < 5000
    rows = torch.tensor([2, -1])
    again = pickle.loads(data).batch(rows)
    assert all(torch.equal(values, again[name]) for name, values in cache.batch(rows).items())


def spoil(images):
    """Every way an image can be bad; the expected reason by item."""
    draw(images / "full.jpg", 0, (200, 200))
    whole = (images / "full.jpg").read_bytes()
    (images / "é0.png").write_bytes(whole[: len(whole) // 2])
    (images / "é1.png").write_bytes(b"")
    (images / "é2.png").write_text("<html>404 not found</html>")
    header = bytearray((images / "é3.png").read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    (images / "é3.png").write_bytes(header)
    draw(images / "é4.png", 0, (1, 101))
    (images / "full.jpg").unlink()
    return {
        "é0": "truncated or damaged",
        "é1": "the file is empty",
        "é2": "not an image",
        "é3": "pixels",
        "é4": "too elongated",
    }


def test_all_bad_images_are_told_in_one_error_with_the_rest(shop):
    reasons = spoil(shop / "images")
    write_table(shop, [*((f"é{i}", "T") for i in range(5)), ("x", ""), ("é0", "again")])
    with pytest.raises(PerPEFTError) as caught:
        open_or_build(shop, tokens=["q"])
    message = str(caught.value)
    for token, reason in reasons.items():
        assert f"'{token}' (images/{token}.png: " in message and reason in message
    for part in (
        "5 images cannot be used",
        "have no image: 'x'",
        "are empty: 'x'",
        "(lines 2 and 8)",
        "item file: 'q'",
    ):
        assert part in message
    assert [path.suffix for path in (shop.parent / "cache").iterdir()] == [".lock"]


def test_blank_stands_in_without_a_second_decoding(shop, decoded, caplog):
    spoil(shop / "images")
    draw(shop / "images" / "é4.png", 4)
    (shop / "images" / "é3.png").unlink()
    write_table(shop, [(f"é{i}", "" if i == 4 else "T") for i in range(5)])
    with pytest.raises(PerPEFTError, match="3 images cannot be used"):
        open_or_build(shop)
    assert decoded == ["é4.png"]
    cache = open_or_build(shop, "blank")
    assert decoded == ["é4.png"]
    assert "stand in for 5 problem(s)" in caplog.text
    assert cache.has_image.tolist() == [False] * 4 + [True]
    assert cache.has_title.tolist() == [True] * 4 + [False]
    assert cache.batch(torch.arange(5))["pixel_values"].flatten(1).any(1).tolist() == [False] * 4 + [True]


def test_changed_image_of_the_same_size_and_time_is_noticed(shop, caplog):
    path = shop / "images" / "é2.png"
    path.write_bytes(path.read_bytes().ljust(2000, b"\0"))
    status = path.stat()
    first = open_or_build(shop)
    before = first.batch(torch.arange(5))["pixel_values"]
    draw(path, 99)
    path.write_bytes(path.read_bytes().ljust(2000, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = open_or_build(shop)
    assert "1 images have changed" in caplog.text
    assert second.folder == first.folder and second.fingerprint != first.fingerprint
    after = second.batch(torch.arange(5))["pixel_values"]
    assert (before != after).flatten(1).any(1).tolist() == [False, False, True, False, False]
    assert torch.equal(first.batch(torch.arange(5))["pixel_values"], before), "an open cache keeps its pixels"


def test_only_chunks_of_changed_images_are_processed_again(shop, decoded, monkeypatch):
    monkeypatch.setattr(cache_build, "CHUNK_ROWS", 2)
    open_or_build(shop)
    draw(shop / "images" / "é3.png", 77)
    os.utime(shop / "images" / "é0.png", ns=(1, 1))
    del decoded[:]
    changed = open_or_build(shop)
    assert decoded == ["é2.png", "é3.png"]
    fresh = ContentCache.open_or_build(load(shop), SmallProcessor(), shop.parent / "fresh", 0, False)
    assert arrays_of(changed) == arrays_of(fresh)


def test_a_missing_image_that_comes_is_noticed(shop, decoded):
    (shop / "images" / "é1.png").rename(shop / "later")
    cache = open_or_build(shop, "blank")
    assert not cache.has_image[1]
    (shop / "later").rename(shop / "images" / "é1.png")
    cache = open_or_build(shop)
    assert cache.has_image.all() and cache.batch(torch.tensor([1]))["pixel_values"].any()


def test_touched_or_copied_images_keep_the_cache(shop, decoded):
    fingerprint = open_or_build(shop).fingerprint
    for path in (shop / "images").iterdir():
        os.utime(path, ns=(1, 1))
    assert open_or_build(shop).fingerprint == fingerprint
    copied = make_items(shop.parent / "copy" / "shop")
    cache = ContentCache.open_or_build(load(copied), SmallProcessor(), shop.parent / "cache", 0, False)
    assert cache.fingerprint == fingerprint and len(decoded) == 5


def test_changed_title_or_processor_makes_another_cache(shop):
    first = open_or_build(shop)
    other = SmallProcessor(description={"name": "other", "size": (6, 8)})
    assert open_or_build(shop, processor=other).folder != first.folder
    write_table(shop, [(f"é{i}", f"Größe  {i}") for i in range(5)])
    second = open_or_build(shop)
    assert second.folder != first.folder and second.fingerprint != first.fingerprint


def test_opening_a_cache_of_something_else_fails(shop):
    folder = open_or_build(shop).folder
    other = SmallProcessor(description={"name": "other", "size": (6, 8)})
    with pytest.raises(PerPEFTError, match="cache of another processor: name differ"):
        ContentCache.open(folder, load(shop), other)
    write_table(shop, [(f"é{i}", "T") for i in range(5)])
    with pytest.raises(PerPEFTError, match="other items or titles"):
        ContentCache.open(folder, load(shop), SmallProcessor())
    with pytest.raises(PerPEFTError, match=r"manifest\.json: cannot be read"):
        ContentCache.open(shop, load(shop), SmallProcessor())


def cut_in_half(folder):
    path = folder / "pixel_values.npy"
    os.truncate(path, path.stat().st_size // 2)


def replace_manifest(text):
    def spoil_manifest(folder):
        (folder / "manifest.json").write_text(text)

    return spoil_manifest


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut_in_half, r"pixel_values\.npy"),
        (lambda folder: (folder / "input_ids.npy").unlink(), r"input_ids\.npy"),
        (lambda folder: np.save(folder / "attention_mask.npy", np.zeros((5, 3))), "holds float64"),
        (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
        (replace_manifest('{"format": '), "is no manifest"),
        (replace_manifest("[1]"), "is no manifest"),
        (replace_manifest('{"format": "something else"}'), "'something else'"),
    ],
)
def test_a_damaged_cache_is_refused_and_built_again(shop, caplog, damage, part):
    cache = open_or_build(shop)
    whole = arrays_of(cache)
    del cache
    folder = open_or_build(shop).folder
    damage(folder)
    with pytest.raises(PerPEFTError, match=part):
        ContentCache.open(folder, load(shop), SmallProcessor())
    assert arrays_of(open_or_build(shop)) == whole
    assert "built again" in caplog.text


@pytest.mark.parametrize("call", ["reserve", "write"])
def test_full_disk(shop, monkeypatch, call):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "reserve":
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    else:
        monkeypatch.setattr(cache_build.RowFiles, "write", no_space)
    with pytest.raises(PerPEFTError, match="the disk is full; the cache of shop needs .* MiB"):
        open_or_build(shop)
    assert [path.suffix for path in (shop.parent / "cache").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert open_or_build(shop).n_rows == 5


def test_workers_make_the_same_cache(tmp_path):
    shop = make_items(tmp_path / "shop", 200)
    spoil(shop / "images")
    alone = open_or_build(shop, "blank")
    together = ContentCache.open_or_build(
        load(shop, missing_content="blank"), SmallProcessor(), tmp_path / "other", 2, False
    )
    assert arrays_of(together) == arrays_of(alone)
    assert together.damaged.keys() == set(range(5))


BUILDER = """
import time
from pathlib import Path
from recbole_perpeft.store.inputs import ContentCache
from recbole_perpeft.data.content import ItemContent
from support.small_processor import SmallProcessor

class SlowProcessor(SmallProcessor):
    def image(self, image):
        time.sleep({delay})
        return super().image(image)

print("ready", flush=True)
folder = Path({folder!r})
cache = ContentCache.open_or_build(
    ItemContent.load(folder, "shop", []), SlowProcessor(), folder.parent / "cache", {n_workers}, show_progress=False
)
print(cache.fingerprint)
"""


def start_builder(shop, n_workers, delay=0.002):
    """A script without a `__main__` guard, as users write them."""
    script = shop.parent / "build.py"
    script.write_text(BUILDER.format(folder=str(shop), n_workers=n_workers, delay=delay))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)


def wait_for_chunks(cache_folder, n):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for journal in cache_folder.glob(".*.draft/journal.jsonl"):
            if len(journal.read_bytes().splitlines()) > n:
                return
        time.sleep(0.005)
    raise AssertionError("the build did not begin")


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_killed_build_goes_on(tmp_path, decoded, n_workers):
    shop = make_items(tmp_path / "shop", 400)
    with start_builder(shop, n_workers) as builder:
        wait_for_chunks(tmp_path / "cache", 2)
        builder.send_signal(signal.SIGKILL)
    (draft,) = (tmp_path / "cache").glob(".*.draft")
    if n_workers == 0:
        draft = draft.rename(draft.with_name(f"{draft.name[1:-6]}.partial"))  # as version 0.1.0 named it
    with open(draft / "journal.jsonl", "a") as journal:
        journal.write('{"index": 5, "check')
    resumed = open_or_build(shop)
    assert 0 < len(decoded) < 400 - 64
    fresh = ContentCache.open_or_build(load(shop), SmallProcessor(), tmp_path / "fresh", 0, False)
    assert arrays_of(resumed) == arrays_of(fresh)
    assert not list((tmp_path / "cache").glob(".*.draft"))


@pytest.mark.parametrize("harm", ["image", "row"])
def test_a_resumed_build_trusts_no_outdated_or_lost_chunk(shop, decoded, monkeypatch, harm):
    monkeypatch.setattr(cache_build, "CHUNK_ROWS", 2)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stop:
        stop.setattr("recbole_perpeft.store.inputs._finish", fail)
        with pytest.raises(KeyboardInterrupt):
            open_or_build(shop)
    del decoded[:]
    (draft,) = (shop.parent / "cache").glob(".*.draft")
    if harm == "image":
        draw(shop / "images" / "é2.png", 55)
    else:
        with open(draft / "pixel_values.npy", "r+b") as file:
            file.seek(128 + 2 * 144)
            file.write(bytes(144))
    resumed = open_or_build(shop)
    assert decoded == ["é2.png", "é3.png"]
    fresh = ContentCache.open_or_build(load(shop), SmallProcessor(), shop.parent / "fresh", 0, False)
    assert arrays_of(resumed) == arrays_of(fresh)


def test_two_processes_build_one_cache(tmp_path):
    shop = make_items(tmp_path / "shop", 200)
    builders = [start_builder(shop, n_workers) for n_workers in (0, 0)]
    outputs = [builder.communicate(timeout=120)[0].split() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert outputs[0] == outputs[1] and outputs[0][1] == open_or_build(shop).fingerprint


def test_waiting_for_another_process_is_logged(shop, caplog):
    caplog.set_level(logging.INFO)
    (shop.parent / "cache").mkdir()
    name = f"shop-{cache_key(load(shop), SmallProcessor())[:16]}.lock"
    is_held = threading.Event()

    def hold():
        with FileLock(shop.parent / "cache" / name):
            is_held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    assert open_or_build(shop).n_rows == 5
    holder.join()
    assert "waiting for it" in caplog.text


def test_a_dead_worker_is_explained(tmp_path):
    shop = make_items(tmp_path / "shop", 200)
    with pytest.raises(PerPEFTError, match="a worker process died"):
        open_or_build(shop, processor=processors.DyingProcessor(), n_workers=2)


def test_a_failing_processor_names_the_image(shop):
    with pytest.raises(PerPEFTError, match=r"é0\.png: the processor fails .* too odd"):
        open_or_build(shop, processor=processors.FailingProcessor())


def test_manifest_is_plain_and_complete(shop):
    manifest = json.loads((open_or_build(shop).folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["processor"] == {"name": "small", "size": [6, 8]}
    assert manifest["n_rows"] == 5 and manifest["arrays"]["pixel_values"] == ["|u1", [3, 6, 8]]
