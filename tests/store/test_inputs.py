import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.photos import images as images_module
from recbole_perpeft.store import inputs, rows
from recbole_perpeft.store.inputs import ContentCache
from support import small_processor as processors
from support.small_recipe import draw, load, make_items, write_table

# Worker processes and scripts import the processors by name.
SmallProcessor = processors.SmallProcessor
TEXTS = SmallProcessor(image_size=None)
IMAGES = SmallProcessor(text_length=None)
N = 5
ALL = torch.arange(N)


def open_or_build(folder, missing_content="error", processor=None, tokens=(), fields=("title", "image")):
    content = load(folder, tokens, missing_content, fields)
    return ContentCache.open_or_build(
        content, processor or SmallProcessor(), folder.parent / "cache", show_progress=False
    )


def arrays_of(cache):
    return {path.name: path.read_bytes() for path in cache.folder.iterdir()}


def arrays_in(cache):
    return {path.stem for path in cache.folder.glob("*.npy")}


@pytest.fixture
def shop(tmp_path):
    return make_items(tmp_path / "shop")


@pytest.fixture
def decoded(monkeypatch):
    """Names of images that were processed, in order."""
    read, processed = [], []
    read_image_file, process = images_module.read_image_file, SmallProcessor.image
    monkeypatch.setattr(images_module, "read_image_file", lambda path: read.append(path.name) or read_image_file(path))
    monkeypatch.setattr(
        SmallProcessor, "image", lambda self, image: processed.append(read[-1]) or process(self, image)
    )
    return processed


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(inputs, "cpu_count", lambda: 2)
    monkeypatch.setattr(inputs, "ROWS_WORTH_A_WORKER", 100)


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
    assert cache.n_rows == N and not cache.damaged


def test_rows_of_tokens_and_copies(shop):
    cache = open_or_build(shop)
    assert cache.rows_of(np.array(["[PAD]", "é4", "é0"])).tolist() == [-1, 4, 0]
    with pytest.raises(PerPEFTError, match="no item 'é9'"):
        cache.rows_of(["é9"])
    data = pickle.dumps(cache)
    assert len(data) < 5000
    again = pickle.loads(data).batch(torch.tensor([2, -1]))
    assert all(torch.equal(values, again[name]) for name, values in cache.batch(torch.tensor([2, -1])).items())


def test_reading_releases_pages_and_stays_right(shop, monkeypatch):
    monkeypatch.setattr(rows, "MAX_MAPPED_BYTES", 100)
    cache = open_or_build(shop)
    first = cache.batch(ALL)
    again = cache.batch(ALL)
    assert all(torch.equal(again[name], values) and values.any() for name, values in first.items())


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_an_image_that_becomes_readable_is_noticed(shop, monkeypatch):
    path = shop / "images" / "é1.png"
    path.chmod(0)
    with monkeypatch.context() as refused:  # a superuser may read everything
        original = images_module.open_regular

        def refuse(file):
            if file == path:
                raise PermissionError(errno.EACCES, "Permission denied")
            return original(file)

        refused.setattr(images_module, "open_regular", refuse)
        for _ in range(2):
            with pytest.raises(PerPEFTError, match=r"'é1' \(images/é1.png: cannot be read: Permission denied"):
                open_or_build(shop)
    path.chmod(0o644)
    assert not open_or_build(shop).damaged


def test_second_opening_decodes_nothing(shop, decoded):
    first = open_or_build(shop)
    assert len(decoded) == N
    second = open_or_build(shop)
    assert len(decoded) == N and second.fingerprint == first.fingerprint and second.folder == first.folder


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
    write_table(shop, [*((f"é{i}", "T") for i in range(N)), ("x", ""), ("é0", "again")])
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
    write_table(shop, [(f"é{i}", "" if i == 4 else "T") for i in range(N)])
    with pytest.raises(PerPEFTError, match="3 images cannot be used"):
        open_or_build(shop)
    assert decoded == ["é4.png"]
    cache = open_or_build(shop, "blank")
    assert decoded == ["é4.png"]
    assert "stand in for 5 problem(s)" in caplog.text
    assert sorted(cache.damaged) == [0, 1, 2]
    assert cache.batch(ALL)["pixel_values"].flatten(1).any(1).tolist() == [False] * 4 + [True]


def test_only_chunks_of_changed_images_are_processed_again(shop, decoded, monkeypatch, caplog):
    monkeypatch.setattr(inputs, "CHUNK_ROWS", 2)
    before = open_or_build(shop)
    draw(shop / "images" / "é3.png", 77)
    os.utime(shop / "images" / "é0.png", ns=(1, 1))
    del decoded[:]
    changed = open_or_build(shop)
    assert decoded == ["é2.png", "é3.png"] and "image of 1 items changed" in caplog.text
    assert changed.folder == before.folder and changed.fingerprint != before.fingerprint
    fresh = ContentCache.open_or_build(load(shop), SmallProcessor(), shop.parent / "fresh", False)
    assert arrays_of(changed).keys() == arrays_of(fresh).keys()
    assert all(arrays_of(changed)[f"{name}.npy"] == arrays_of(fresh)[f"{name}.npy"] for name in arrays_in(fresh))


def test_touched_or_copied_images_keep_the_cache(shop, decoded):
    fingerprint = open_or_build(shop).fingerprint
    for path in (shop / "images").iterdir():
        os.utime(path, ns=(1, 1))
    assert open_or_build(shop).fingerprint == fingerprint
    copied = make_items(shop.parent / "copy" / "shop")
    cache = ContentCache.open_or_build(load(copied), SmallProcessor(), shop.parent / "cache", False)
    assert cache.fingerprint == fingerprint and len(decoded) == N


def test_changed_title_or_processor_makes_another_cache(shop):
    first = open_or_build(shop)
    other = SmallProcessor(description={"name": "other", "size": (6, 8)})
    assert open_or_build(shop, processor=other).folder != first.folder
    write_table(shop, [(f"é{i}", f"Größe  {i}") for i in range(N)])
    second = open_or_build(shop)
    assert second.folder != first.folder and second.fingerprint != first.fingerprint


def test_opening_a_cache_of_something_else_fails(shop):
    folder = open_or_build(shop).folder
    other = SmallProcessor(description={"name": "other", "size": (6, 8)})
    with pytest.raises(PerPEFTError, match="cache of another processor: name differ"):
        ContentCache.open(folder, load(shop), other)
    write_table(shop, [(f"é{i}", "T") for i in range(N)])
    with pytest.raises(PerPEFTError, match="other items or titles"):
        ContentCache.open(folder, load(shop), SmallProcessor())
    with pytest.raises(PerPEFTError, match=r"manifest\.json: cannot be read"):
        ContentCache.open(shop, load(shop), SmallProcessor())


def test_a_cache_of_version_0_1_0_is_no_other(shop, decoded):
    """Its manifest knows no rows of a chunk, no stamps of files, and one checksum for all arrays of a chunk."""
    folder = open_or_build(shop).folder
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in ("chunk_rows", "stamps"):
        del manifest[name]
    manifest["chunks"] = [{"index": chunk["index"], "checksum": 1, "damaged": {}} for chunk in manifest["chunks"]]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert open_or_build(shop).batch(ALL)["pixel_values"].any() and len(decoded) == N
    draw(shop / "images" / "é3.png", 77)
    assert open_or_build(shop).batch(ALL)["pixel_values"].any()


def test_manifest_is_plain_and_complete(shop):
    manifest = json.loads((open_or_build(shop).folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["processor"] == {"name": "small", "size": [6, 8]}
    assert manifest["n_rows"] == N and manifest["arrays"]["pixel_values"] == ["|u1", [3, 6, 8]]


def test_a_failing_processor_names_the_image(shop):
    with pytest.raises(PerPEFTError, match=r"é0\.png: the processor fails .* too odd"):
        open_or_build(shop, processor=processors.FailingProcessor())


# Several processes


def test_workers_make_the_same_cache(tmp_path, monkeypatch, request):
    shop = make_items(tmp_path / "shop", 200)
    spoil(shop / "images")
    alone = open_or_build(shop, "blank")
    request.getfixturevalue("two_workers")
    content = load(shop, missing_content="blank")
    together = ContentCache.open_or_build(content, SmallProcessor(), tmp_path / "other", False)
    assert all(arrays_of(together)[f"{name}.npy"] == arrays_of(alone)[f"{name}.npy"] for name in arrays_in(alone))
    assert together.damaged == alone.damaged and together.damaged.keys() == set(range(5))


def test_a_dead_worker_is_explained(tmp_path, two_workers):
    shop = make_items(tmp_path / "shop", 200)
    with pytest.raises(PerPEFTError, match="a worker process died"):
        open_or_build(shop, processor=processors.DyingProcessor())


BUILDER = """
import time
from pathlib import Path
from recbole_perpeft.store import inputs
from recbole_perpeft.data.content import ItemContent
from support.small_processor import SmallProcessor

class SlowProcessor(SmallProcessor):
    def image(self, image):
        time.sleep(0.002)
        return super().image(image)

inputs.cpu_count, inputs.ROWS_WORTH_A_WORKER = lambda: 2, 100
folder = Path({folder!r})
content = ItemContent.load(folder, "shop", [])
inputs.ContentCache.open_or_build(content, SlowProcessor(), folder.parent / "cache", show_progress=False)
"""


def test_a_killed_build_with_workers_goes_on(tmp_path, decoded):
    """A script without a `__main__` guard, as users write them."""
    shop = make_items(tmp_path / "shop", 400)
    script = tmp_path / "build.py"
    script.write_text(BUILDER.format(folder=str(shop)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script], env=environment) as builder:
        deadline = time.monotonic() + 60
        while not any(
            len(journal.read_bytes().splitlines()) > 2
            for journal in (tmp_path / "cache").glob(".*.draft/journal.jsonl")
        ):
            assert time.monotonic() < deadline and builder.poll() is None
            time.sleep(0.005)
        builder.send_signal(signal.SIGKILL)
    resumed = open_or_build(shop)
    assert 0 < len(decoded) < 400 - 64
    fresh = ContentCache.open_or_build(load(shop), SmallProcessor(), tmp_path / "fresh", False)
    assert all(arrays_of(resumed)[f"{name}.npy"] == arrays_of(fresh)[f"{name}.npy"] for name in arrays_in(fresh))


# Texts alone and images alone


def test_texts_need_no_images(shop):
    for path in (shop / "images").iterdir():
        path.unlink()
    (shop / "images").rmdir()
    cache = open_or_build(shop, processor=TEXTS, fields=["title"])
    assert arrays_in(cache) == {"input_ids", "attention_mask"}
    batch = pickle.loads(pickle.dumps(cache)).batch(torch.tensor([3, -1]))
    ids, mask = TEXTS.text(["Größe 3"])
    assert batch.keys() == {"input_ids", "attention_mask"}
    np.testing.assert_array_equal(batch["input_ids"][0].numpy(), ids[0, :7])
    np.testing.assert_array_equal(batch["attention_mask"][0].numpy(), mask[0, :7])
    assert not batch["input_ids"][1].any() and not cache.damaged


def test_images_need_no_titles(shop):
    (shop / "shop.item").write_text("item_id:token\n" + "".join(f"é{i}\n" for i in range(N)), encoding="utf-8")
    cache = open_or_build(shop, processor=IMAGES, fields=["image"])
    assert arrays_in(cache) == {"pixel_values", "image_digest", "image_stamp"}
    batch = pickle.loads(pickle.dumps(cache)).batch(torch.tensor([3, -1]))
    assert batch.keys() == {"pixel_values"}
    with Image.open(shop / "images" / "é3.png") as image:
        np.testing.assert_array_equal(batch["pixel_values"][0].numpy(), IMAGES.image(image))
    assert not batch["pixel_values"][1].any() and not cache.damaged


def test_the_three_kinds_are_three_caches(shop):
    caches = [open_or_build(shop, processor=processor) for processor in (SmallProcessor(), TEXTS, IMAGES)]
    assert len({cache.folder for cache in caches}) == len({cache.folder.name for cache in caches}) == 3
    whole = caches[0].batch(ALL)
    for cache in caches[1:]:
        for name, values in cache.batch(ALL).items():
            assert torch.equal(values, whole[name])


def test_a_cache_of_texts_looks_at_no_image(shop, monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(images_module, "read_image_file", refuse)
    first = open_or_build(shop, processor=TEXTS)
    draw(shop / "images" / "é2.png", 99)
    second = open_or_build(shop, processor=TEXTS)
    assert second.folder == first.folder and second.fingerprint == first.fingerprint


def test_changed_titles_and_images_are_noticed(shop):
    texts, images = (open_or_build(shop, processor=processor) for processor in (TEXTS, IMAGES))
    draw(shop / "images" / "é2.png", 99)
    assert open_or_build(shop, processor=IMAGES).fingerprint != images.fingerprint
    write_table(shop, [(f"é{i}", "other") for i in range(N)])
    assert open_or_build(shop, processor=TEXTS).fingerprint != texts.fingerprint


@pytest.mark.parametrize("processor", [TEXTS, IMAGES], ids=["texts", "images"])
def test_a_stopped_build_goes_on(shop, monkeypatch, processor):
    monkeypatch.setattr(inputs, "CHUNK_ROWS", 2)
    done, original = [], inputs.process_chunk

    def stop_at_last(files, some_processor, chunk):
        done.append(chunk.index)
        if done == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(files, some_processor, chunk)

    monkeypatch.setattr(inputs, "process_chunk", stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(shop, processor=processor)
    open_or_build(shop, processor=processor)
    assert done == [0, 1, 2, 2]
