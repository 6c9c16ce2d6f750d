"""Caches of texts alone and of images alone."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store import inputs_build as cache_build
from recbole_perpeft.store.inputs import ContentCache
from support.small_processor import SmallProcessor

TEXTS = SmallProcessor(image_size=None)
IMAGES = SmallProcessor(text_length=None)
N = 5


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for i in range(N):
        draw(folder, i, i)
    write_titles(folder, [f"Title {i}" for i in range(N)])
    return folder


def draw(folder, i, seed):
    values = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "images" / f"i{i}.png")


def write_titles(folder, titles):
    lines = "".join(f"i{i}\t{title}\n" for i, title in enumerate(titles))
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + lines, encoding="utf-8")


def open_or_build(folder, processor, fields):
    content = ItemContent.load(folder, "shop", [], fields=fields)
    return ContentCache.open_or_build(content, processor, folder.parent / "cache", 0, show_progress=False)


def arrays_in(cache):
    return {path.stem for path in cache.folder.glob("*.npy")}


def test_texts_need_no_images(shop):
    for path in (shop / "images").iterdir():
        path.unlink()
    (shop / "images").rmdir()
    cache = open_or_build(shop, TEXTS, ["title"])
    assert arrays_in(cache) == {"input_ids", "attention_mask"}
    batch = pickle.loads(pickle.dumps(cache)).batch(torch.tensor([3, -1]))
    ids, mask = TEXTS.text(["Title 3"])
    assert batch.keys() == {"input_ids", "attention_mask"}
    np.testing.assert_array_equal(batch["input_ids"][0].numpy(), ids[0, :7])
    np.testing.assert_array_equal(batch["attention_mask"][0].numpy(), mask[0, :7])
    assert not batch["input_ids"][1].any() and not cache.damaged and cache.has_title.all()


def test_images_need_no_titles(shop):
    (shop / "shop.item").write_text("item_id:token\n" + "".join(f"i{i}\n" for i in range(N)), encoding="utf-8")
    cache = open_or_build(shop, IMAGES, ["image"])
    assert arrays_in(cache) == {"pixel_values", "image_digest", "image_stamp"}
    batch = pickle.loads(pickle.dumps(cache)).batch(torch.tensor([3, -1]))
    assert batch.keys() == {"pixel_values"}
    with Image.open(shop / "images" / "i3.png") as image:
        np.testing.assert_array_equal(batch["pixel_values"][0].numpy(), IMAGES.image(image))
    assert not batch["pixel_values"][1].any() and cache.has_image.all()


def test_the_three_kinds_are_three_caches(shop):
    both = ["title", "image"]
    caches = [
        open_or_build(shop, SmallProcessor(), both),
        open_or_build(shop, TEXTS, both),
        open_or_build(shop, IMAGES, both),
    ]
    assert len({cache.folder for cache in caches}) == len({cache.folder.name for cache in caches}) == 3
    whole = caches[0].batch(torch.arange(N))
    for cache in caches[1:]:
        for name, values in cache.batch(torch.arange(N)).items():
            assert torch.equal(values, whole[name])


def test_a_cache_of_texts_looks_at_no_image(shop, monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(cache_build, "read_image_file", refuse)
    first = open_or_build(shop, TEXTS, ["title", "image"])
    draw(shop, 2, 99)
    second = open_or_build(shop, TEXTS, ["title", "image"])
    assert second.folder == first.folder and second.fingerprint == first.fingerprint


def test_changed_titles_and_images_are_noticed(shop):
    texts, images = (open_or_build(shop, processor, ["title", "image"]) for processor in (TEXTS, IMAGES))
    draw(shop, 2, 99)
    assert open_or_build(shop, IMAGES, ["title", "image"]).fingerprint != images.fingerprint
    write_titles(shop, ["other"] * N)
    assert open_or_build(shop, TEXTS, ["title", "image"]).fingerprint != texts.fingerprint


@pytest.mark.parametrize("processor", [TEXTS, IMAGES], ids=["texts", "images"])
def test_a_stopped_build_goes_on(shop, monkeypatch, processor):
    monkeypatch.setattr(cache_build, "CHUNK_ROWS", 2)
    done, original = [], cache_build.process_chunk

    def stop_at_last(files, some_processor, chunk):
        done.append(chunk.index)
        if done == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(files, some_processor, chunk)

    monkeypatch.setattr(cache_build, "process_chunk", stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(shop, processor, ["title", "image"])
    open_or_build(shop, processor, ["title", "image"])
    assert done == [0, 1, 2, 2]
