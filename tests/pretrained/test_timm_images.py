"""Images for models of timm, prepared without torchvision."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.locate import locate_encoder
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.timm_images import TimmImageProcessor
from support.timm_models import has_timm

CFG = {
    "input_size": [3, 32, 32],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
SIZES = [(32, 32), (61, 40), (40, 61), (37, 200), (9, 5), (35, 36)]
CONFIGURATIONS = [
    CFG,
    CFG | {"crop_pct": 1.0, "interpolation": "bilinear"},
    CFG | {"crop_mode": "squash", "input_size": [3, 32, 24]},
    {"input_size": [3, 48, 48]},
]


def photo(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_the_short_side_is_scaled_and_the_middle_is_cut_out(size):
    pixels = TimmImageProcessor(CFG, "image_encoder")(photo(size))["pixel_values"][0]
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
    short = math.floor(32 / 0.9)
    width, height = (int(short * length / min(size)) for length in size)
    whole = np.asarray(photo(size).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    np.testing.assert_array_equal(pixels, whole[top : top + 32, left : left + 32].transpose(2, 0, 1))


@pytest.mark.skipif(not has_timm(), reason="timm and torchvision are not installed, or do not fit to this torch")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", CONFIGURATIONS)
def test_pixels_are_those_of_timm(cfg, size):
    import timm

    transform = timm.data.create_transform(**timm.data.resolve_data_config(cfg))
    images = TimmImageProcessor(cfg, "image_encoder")
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (images.image_mean, images.image_std))
    ours = (images(photo(size))["pixel_values"][0] * images.rescale_factor - mean) / std
    np.testing.assert_allclose(ours, transform(photo(size)).numpy(), atol=1e-6)


def test_the_processor_of_a_folder_of_timm_reads_its_configuration(tmp_path):
    (tmp_path / "model.safetensors").touch()
    config = {"architecture": "resnet10t", "pretrained_cfg": CFG}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert locate_encoder(tmp_path, "image") == str(tmp_path)
    processor = Processor.from_encoders(image_encoder=tmp_path)
    assert processor.image_size == (32, 32) and processor.image_mean == (0.5, 0.4, 0.3)
    assert processor.image(photo((61, 40))).shape == (3, 32, 32)
    described = processor.description["image"]
    assert json.loads(json.dumps(described)) == described and described["crop_pct"] == 0.9
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t"}))
    with pytest.raises(PerPEFTError, match="has no image processor configuration"):
        Processor.from_encoders(image_encoder=tmp_path)


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"input_size": [1, 32, 32]}, {"input_size": [3, 32, 24]}])
def test_images_that_cannot_be_prepared_are_refused(change):
    with pytest.raises(PerPEFTError, match="^image_encoder: .* cannot be prepared here"):
        TimmImageProcessor(CFG | change, "image_encoder")
