"""Processors of a text encoder and an image encoder that are two models, or of one alone."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.frozen import FrozenModel
from recbole_perpeft.pretrained.locate import locate_encoder
from recbole_perpeft.pretrained.processor import Processor, load_image_processor, pixels_of
from support import tiny_encoders

TITLES = ["red mug", "a round lamp on a table with stripes on a table"]
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


@pytest.fixture
def text_folder(clip_folder, tmp_path):
    """An encoder of texts: no image processor beside it."""
    folder = shutil.copytree(clip_folder, tmp_path / "text")
    (folder / "preprocessor_config.json").unlink()
    return folder


@pytest.fixture
def image_folder(clip_folder, tmp_path):
    """An encoder of images: no tokenizer beside it."""
    folder = shutil.copytree(clip_folder, tmp_path / "image")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


def test_two_encoders_make_what_each_makes(clip_folder, text_folder, image_folder):
    both = Processor.from_encoders(text_folder, image_folder, max_text_length=8)
    dual = Processor.from_pretrained(clip_folder, max_text_length=8)
    np.testing.assert_array_equal(both.image(PHOTO), dual.image(PHOTO))
    for own, other in zip(both.text(TITLES), dual.text(TITLES), strict=True):
        np.testing.assert_array_equal(own, other)
    assert both.description == dual.description and both.image_std == dual.image_std
    assert both.trim_text and both.image_size == dual.image_size


def test_texts_alone(text_folder, clip_folder):
    processor = pickle.loads(pickle.dumps(Processor.from_encoders(text_folder, max_text_length=8)))
    assert processor.image_size is None and processor.text_length == 8
    assert processor.text(TITLES)[0].shape == (2, 8)
    assert processor.description.keys() == {"tokenizer", "text_length"}


def test_images_alone(image_folder):
    processor = pickle.loads(pickle.dumps(Processor.from_encoders(image_encoder=image_folder)))
    assert processor.text_length is None and processor.image(PHOTO).shape == (3, 16, 16)
    assert processor.description.keys() == {"image"} and not processor.trim_text


def test_texts_of_siglip_keep_their_length(siglip_folder):
    assert not Processor.from_encoders(siglip_folder, max_text_length=8).trim_text


def test_a_tokenizer_without_pad_token_pads_with_its_end(text_folder):
    file = text_folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    ids, mask = Processor.from_encoders(text_folder, max_text_length=8).text(TITLES)
    assert ids[0, 4:].tolist() == [3] * 4 and mask[0].tolist() == [1] * 4 + [0] * 4


def test_neither_encoder():
    with pytest.raises(PerPEFTError, match="both are empty; name at least one"):
        Processor.from_encoders()


def test_errors_name_the_key(text_folder, image_folder):
    with pytest.raises(PerPEFTError, match="^image_encoder: .* has no image processor configuration"):
        Processor.from_encoders(image_encoder=text_folder)
    with pytest.raises(PerPEFTError, match="^text_encoder: .* has no tokenizer"):
        Processor.from_encoders(image_folder)
    with pytest.raises(PerPEFTError, match="^text_encoder: the folder ../nowhere/model does not exist"):
        locate_encoder("../nowhere/model", "text")
    with pytest.raises(PerPEFTError, match="max_text_length: 40 does not fit .*choose a number from 3 to 12"):
        Processor.from_encoders(text_folder, max_text_length=40)
    (text_folder / "tokenizer.json").write_text("{")
    with pytest.raises(PerPEFTError, match="^text_encoder: the tokenizer in .* cannot be read"):
        Processor.from_encoders(text_folder)


@pytest.mark.parametrize(
    "more",
    [
        {"include_top": False},
        {"include_top": True},
        {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ],
    ids=["plain", "top", "align"],
)
def test_pixels_of_efficientnet_are_those_of_its_own_processor(tmp_path, more):
    size = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    settings = {"image_processor_type": "EfficientNetImageProcessor"} | size | more
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    images = load_image_processor(str(tmp_path), "image_encoder")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (25, 40, 3), dtype=np.uint8))
    ours = torch.from_numpy(Processor(images, None, None, False).image(photo)).unsqueeze(0)
    expected = torch.as_tensor(np.asarray(images(photo, return_tensors="np")["pixel_values"][0]))
    found = FrozenModel(torch.nn.Identity(), pixels_of(images)).normalised(ours)[0]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    description = Processor(images, None, None, False).description["image"]
    assert ("read_as" in description) == (more["include_top"] or "rescale_offset" in more)


def test_padding_stands_at_the_right_whatever_side_the_tokenizer_prefers(tmp_path):
    processor = Processor.from_encoders(text_encoder=tiny_encoders.make_llama(tmp_path), max_text_length=6)
    ids, mask = processor.text(["red mug", "a"])
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]] and (ids[0, :2] >= 4).all()
    assert processor.offsets("red mug").tolist() == [[0, 3], [4, 7]] + [[0, 0]] * 4
