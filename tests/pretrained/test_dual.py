import json
import pickle
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPModel, SiglipModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained import dual as foundation_module
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Pixels, Processor, load_image_processor

TITLES = ["red mug", "a round lamp on a table with stripes on a table with a mug on a table"]


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


@pytest.fixture
def copy_of_clip(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "copy")


def test_image_is_the_models_own_preprocessing(clip_folder, photo):
    processor = Processor.from_pretrained(clip_folder)
    pixels = processor.image(photo)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, *processor.image_size) == (3, 16, 16)
    expected = load_image_processor(str(clip_folder))(photo, return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    np.testing.assert_allclose((pixels * processor.rescale_factor - mean) / std, expected, atol=1e-6)


def test_text_has_one_length_and_keeps_its_end_when_cut(clip_folder):
    ids, mask = Processor.from_pretrained(clip_folder).text(TITLES)
    assert (ids.dtype, mask.dtype) == (np.int32, np.uint8)
    assert ids.shape == mask.shape == (2, 12)
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 12])
    np.testing.assert_array_equal([ids[0, 3], ids[1, 11]], [3, 3])
    assert Processor.from_pretrained(clip_folder, max_text_length=5).text(TITLES)[0].shape == (2, 5)


def test_an_empty_title_is_a_text_too(clip_folder):
    np.testing.assert_array_equal(Processor.from_pretrained(clip_folder).text([""])[1].sum(), 2)


@pytest.mark.parametrize("length", [-1, 0, 2, 13])
def test_text_length_that_does_not_fit_is_refused(clip_folder, length):
    with pytest.raises(PerPEFTError, match="max_text_length.*from 3 to 12"):
        Processor.from_pretrained(clip_folder, max_text_length=length)


def test_processor_survives_pickling_and_describes_itself(clip_folder, copy_of_clip, photo):
    processor = Processor.from_pretrained(clip_folder)
    before = processor.description
    sent = pickle.loads(pickle.dumps(processor))
    np.testing.assert_array_equal(sent.image(photo), processor.image(photo))
    np.testing.assert_array_equal(sent.text(TITLES)[0], processor.text(TITLES)[0])
    assert sent.description == processor.description == before == json.loads(json.dumps(before))
    assert Processor.from_pretrained(copy_of_clip).description == before, "a moved folder keeps its caches"
    assert Processor.from_pretrained(clip_folder, max_text_length=6).description != before
    settings = json.loads((copy_of_clip / "preprocessor_config.json").read_text())
    (copy_of_clip / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 0}))
    assert Processor.from_pretrained(copy_of_clip).description != before


def test_images_of_varying_shape_are_refused(copy_of_clip):
    settings = json.loads((copy_of_clip / "preprocessor_config.json").read_text())
    (copy_of_clip / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": False}))
    with pytest.raises(PerPEFTError, match="different shapes"):
        Processor.from_pretrained(copy_of_clip)


@pytest.mark.parametrize(("folder", "model_class"), [("clip_folder", CLIPModel), ("siglip_folder", SiglipModel)])
def test_content_is_the_models_own_output(request, folder, model_class, photo):
    folder = request.getfixturevalue(folder)
    processor, foundation = Processor.from_pretrained(folder), FoundationModel.from_pretrained(folder)
    ids, mask = (torch.from_numpy(part).long() for part in processor.text(TITLES))
    photos = [photo, photo.rotate(90)]
    pixels = torch.from_numpy(np.stack([processor.image(image) for image in photos]))
    content = foundation(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    floats = load_image_processor(str(folder))(photos, return_tensors="pt")["pixel_values"]
    model = model_class.from_pretrained(folder).eval()
    mask = {} if model_class is SiglipModel else {"attention_mask": mask}
    with torch.no_grad():
        output = model(pixel_values=floats, input_ids=ids, **mask)
    expected = torch.cat([output.image_embeds, output.text_embeds], dim=-1)
    assert content.shape == (2, foundation.content_size)
    torch.testing.assert_close(content, expected, atol=1e-5, rtol=1e-5)


def test_clip_texts_can_be_trimmed(clip_folder, batch):
    foundation = FoundationModel.from_pretrained(clip_folder)
    assert Processor.from_pretrained(clip_folder).trim_text
    trimmed = {name: tensor[:2, :5] if name != "pixel_values" else tensor[:2] for name, tensor in batch.items()}
    torch.testing.assert_close(foundation(**trimmed), foundation(**batch)[:2], atol=1e-6, rtol=1e-5)


def test_siglip_texts_keep_their_length_and_have_no_mask(siglip_folder, batch):
    foundation = FoundationModel.from_pretrained(siglip_folder)
    assert not Processor.from_pretrained(siglip_folder).trim_text
    unmasked = foundation(batch["pixel_values"], batch["input_ids"])
    torch.testing.assert_close(foundation(**batch), unmasked)
    trimmed = foundation(batch["pixel_values"][:2], batch["input_ids"][:2, :5])
    assert (trimmed - unmasked[:2]).abs().max() > 1e-3, "the vector comes from the last slot"


def test_features_of_transformers_4_are_plain_tensors():
    features = torch.ones(2, 3)
    assert foundation_module._pooled(features) is features


def test_half_precision_weights_become_float32(tmp_path, tiny_clip, clip_folder, batch):
    folder = shutil.copytree(clip_folder, tmp_path / "half")
    tiny_clip().half().save_pretrained(folder)
    foundation = FoundationModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in foundation.parameters()} == {torch.float32}
    exact = FoundationModel(tiny_clip().half().float(), Pixels((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)))
    torch.testing.assert_close(foundation(**batch), exact(**batch))


def test_everything_is_frozen_and_stays_out_of_checkpoints(tiny_clip, batch):
    foundation = FoundationModel(tiny_clip())
    assert not any(parameter.requires_grad for parameter in foundation.parameters())
    holder = torch.nn.ModuleDict({"foundation": foundation, "head": torch.nn.Linear(2, 2)})
    before = foundation(**batch)
    state = holder.state_dict()
    assert set(state) == {"head.weight", "head.bias"}
    assert holder.load_state_dict(state, strict=True).missing_keys == []
    torch.testing.assert_close(foundation(**batch), before)
    with pytest.raises(RuntimeError, match="Missing key.*head.bias"):
        holder.load_state_dict({"head.weight": state["head.weight"]})


def test_fingerprint_tells_weights_apart(tiny_clip, clip_folder):
    foundation = FoundationModel(tiny_clip())
    assert foundation.fingerprint == FoundationModel(tiny_clip()).fingerprint
    assert foundation.fingerprint != FoundationModel(tiny_clip(), Pixels(mean=(0.4, 0.4, 0.4))).fingerprint
    for change in (_one_bit, _two_rows):
        model = tiny_clip()
        change(model.text_model.encoder.layers[1].mlp.fc1.weight.data)
        assert FoundationModel(model).fingerprint != foundation.fingerprint, change.__name__
    assert (
        FoundationModel.from_pretrained(clip_folder).fingerprint
        == FoundationModel.from_pretrained(str(clip_folder)).fingerprint
    )


def _one_bit(weight):
    weight[7, 5] = torch.nextafter(weight[7, 5], torch.tensor(2.0))


def _two_rows(weight):
    weight.copy_(weight.flip(0))


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("config.json", "configuration"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("preprocessor_config.json", "image processor"),
    ],
)
def test_incomplete_folder_is_refused(copy_of_clip, missing, what):
    (copy_of_clip / missing).unlink()
    for load in (Processor.from_pretrained, FoundationModel.from_pretrained):
        with pytest.raises(PerPEFTError, match=f"{copy_of_clip} has no {what}"):
            load(copy_of_clip)


def test_weights_that_lack_a_tensor_are_refused(copy_of_clip):
    file = copy_of_clip / "model.safetensors"
    tensors = load_file(file)
    del tensors["visual_projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(PerPEFTError, match=r"lack 1 tensors of CLIPModel, visual_projection\.weight"):
        FoundationModel.from_pretrained(copy_of_clip)


def test_damaged_weights_are_refused(copy_of_clip):
    file = copy_of_clip / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PerPEFTError, match=f"model in {copy_of_clip} cannot be read"):
        FoundationModel.from_pretrained(copy_of_clip)


def test_model_of_one_modality_is_refused(copy_of_clip):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        copy_of_clip
    )
    with pytest.raises(PerPEFTError, match="BertModel does not encode both images and texts"):
        FoundationModel.from_pretrained(copy_of_clip)


@pytest.mark.parametrize("load", [Processor.from_pretrained, FoundationModel.from_pretrained])
def test_hub_id_without_network(monkeypatch, load):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PerPEFTError, match="'nobody/no-such-model' is no folder.*Hugging Face hub.*give the path"):
        load("nobody/no-such-model")
