"""Processors of a text encoder and an image encoder that are two models, or of one alone."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.locate import locate_encoder
from recbole_perpeft.pretrained.processor import Processor

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
