"""A control: content that says nothing of its item."""

from pathlib import Path

import numpy as np
from PIL import Image

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store.noise import noise_of


def test_noise_has_the_form_of_content_and_is_drawn_once(tmp_path):
    titles = ["red round mug", "", "blue lamp", "a mug"]
    content = ItemContent("shop", tmp_path, list("abcd"), titles, [Path("a.png"), None, None, None])
    noisy = noise_of(content, tmp_path / "cache", 7)
    assert [len(title.split()) for title in noisy.titles] == [3, 0, 2, 2] and content.titles == titles
    assert {word for title in noisy.titles for word in title.split()} <= set(" ".join(titles).split())
    photos = [np.asarray(Image.open(path)) for path in noisy.image_paths]
    assert photos[0].shape == (32, 32, 3) and not np.array_equal(photos[0], photos[1])
    stamps = noisy.image_stamps()
    again = noise_of(content, tmp_path / "cache", 7)
    assert again.titles == noisy.titles and np.array_equal(again.image_stamps(), stamps)
    other = noise_of(content, tmp_path / "cache", 8)
    assert other.image_paths != noisy.image_paths
    assert len({content.name, noisy.name, other.name}) == 3  # their states lie in folders of their own
    text_alone = ItemContent("shop", tmp_path, ["a"], ["x"], [None], fields=("title",))
    assert noise_of(text_alone, tmp_path / "cache", 7).image_paths == [None]
