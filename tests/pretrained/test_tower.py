import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    RobertaConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.tower import Backbone
from support.foundations import BERT_TEXT as TEXT
from support.foundations import BERT_TOWER as TOWER
from support.tiny_backbones import encode

VISION = {**TOWER, "image_size": 16, "patch_size": 8}
DUAL = {"text_config": TEXT, "vision_config": VISION}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS = {
    "bert": (BertConfig(**TEXT), "text", "cls"),
    "roberta": (RobertaConfig(**TEXT | {"max_position_embeddings": 30}), "text", "cls"),
    "distilbert": (DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, vocab_size=50), "text", "cls"),
    "llama": (LlamaConfig(**TEXT), "text", "mean"),
    "mistral": (MistralConfig(**TEXT, num_key_value_heads=1), "text", "mean"),
    "gemma": (GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=16), "text", "mean"),
    "gpt2": (GPT2Config(**GPT2), "text", "mean"),
    "clip text": (CLIPConfig(**DUAL), "text", "eos"),
    "siglip text": (SiglipConfig(**DUAL), "text", "eos"),
    "clip images": (CLIPConfig(**DUAL), "image", "cls"),
    "clip vision": (CLIPVisionConfig(**VISION), "image", "cls"),
    "siglip images": (SiglipConfig(**DUAL), "image", "mean"),
    "siglip vision": (SiglipVisionConfig(**VISION), "image", "mean"),
    "vit": (ViTConfig(**VISION), "image", "cls"),
    "dinov2": (Dinov2Config(**VISION), "image", "cls"),
}


def make(name):
    torch.manual_seed(0)
    config, kind, _ = ENCODERS[name]
    return Backbone.from_config(config, kind)


def inputs_of(kind, n=4):
    generator = torch.Generator().manual_seed(1)
    if kind == "image":
        return {"pixel_values": torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)}
    mask = torch.ones(n, 7, dtype=torch.long)
    mask[1, 4:] = mask[2, 2:] = 0
    return {"input_ids": torch.randint(3, 50, (n, 7), generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(name):
    _, kind, pooling = ENCODERS[name]
    backbone, inputs = make(name), inputs_of(kind)
    output = encode(backbone, **inputs)
    assert (backbone.n_layers, backbone.width, backbone.pooling, backbone.kind) == (3, 32, pooling, kind)
    assert len(backbone.layers) == 3 and len(output.states) == 4
    theirs = {"pixel_values": inputs["pixel_values"] / 127.5 - 1} if kind == "image" else dict(inputs)
    if name == "siglip text":
        del theirs["attention_mask"]
    expected = backbone.model(**theirs, output_hidden_states=True)
    for ours, state in zip(output.states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, state, rtol=1e-4, atol=1e-5)
    if name in ("clip images", "clip vision"):  # transformers normalises the class token alone
        torch.testing.assert_close(output.last[:, 0], expected.pooler_output, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(output.last, expected.last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_pooled_states_are_pooled_hidden_states(name):
    _, kind, pooling = ENCODERS[name]
    backbone, inputs = make(name), inputs_of(kind)
    output, mask = encode(backbone, **inputs), inputs.get("attention_mask")
    states, final = backbone.pooled_states((0, 2, 3), pooling, **inputs)
    expected = [backbone.pooled(output.states[layer], None, mask) for layer in (0, 2, 3)]
    torch.testing.assert_close(states, torch.stack(expected, dim=1))
    torch.testing.assert_close(final, backbone.pooled(output.last, pooling, mask))
    nothing, final_alone = backbone.pooled_states((), pooling, **inputs)
    assert nothing.shape == (4, 0, 32) and torch.equal(final_alone, final)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in backbone.layers)


@torch.no_grad()
def test_padding_changes_no_pooled_text():
    for name in ("bert", "llama", "clip text"):
        backbone, inputs = make(name), inputs_of("text")
        together, _ = backbone.pooled_states((1, 3), backbone.pooling, **inputs)
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            alone = {key: values[row : row + 1, :length] for key, values in inputs.items()}
            torch.testing.assert_close(
                backbone.pooled_states((1, 3), backbone.pooling, **alone)[0][0], together[row], rtol=1e-4, atol=1e-5
            )


@torch.no_grad()
def test_mean_all_reads_padding_as_text():
    backbone, inputs = make("llama"), inputs_of("text")
    states, final = backbone.pooled_states((0, 3), "mean_all", **inputs)
    ends = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], 2)  # as a tokenizer may pad
    assert torch.equal(backbone.pooled_states((3,), "mean_all", **inputs | {"input_ids": ends})[1], final)
    unmasked = backbone.model(input_ids=inputs["input_ids"], output_hidden_states=True)
    torch.testing.assert_close(states[:, 1], unmasked.hidden_states[-1].mean(dim=1))
    torch.testing.assert_close(final, unmasked.last_hidden_state.mean(dim=1))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from(["cls", "mean", "mean_all", "eos"]))
def test_pooling_equals_a_loop(lengths, pooling):
    backbone = make("bert")
    states = torch.randn(len(lengths), 6, 32, dtype=torch.float64)
    mask = torch.zeros(len(lengths), 6, dtype=torch.long)
    expected = []
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        tokens = states[row].numpy()
        expected.append(
            {
                "cls": tokens[0],
                "eos": tokens[length - 1],
                "mean": sum(tokens[:length]) / length,
                "mean_all": sum(tokens) / 6,
            }[pooling]
        )
    np.testing.assert_allclose(backbone.pooled(states, pooling, mask).numpy(), np.stack(expected), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "pooling"), [("siglip images", "cls"), ("vit", "eos"), ("vit", "mean_all"), ("bert", "max")]
)
def test_poolings_that_do_not_go_with_an_encoder(name, pooling):
    with pytest.raises(PerPEFTError, match=f"_pooling: '{pooling}' does not go with"):
        make(name).check_pooling(pooling)


def test_frozen_in_eval_mode_and_outside_of_state_dicts():
    backbone = make("vit")
    assert not backbone.training and not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.state_dict()
    backbone.load_state_dict({})
    name = next(name for name, _ in backbone.named_parameters())
    backbone.checkpointed = frozenset({name})
    assert list(backbone.state_dict()) == [name]


def test_gradients_reach_inputs_of_trained_parts():
    backbone = make("bert")
    backbone.layers[1].requires_grad_(True)
    encode(backbone, **inputs_of("text")).last.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.layers[1].parameters())


@torch.no_grad()
def test_folders_and_towers_are_loaded(bert_folder, clip_folder):
    torch.manual_seed(0)
    expected = Backbone.from_config(BertConfig(**TEXT), "text")
    inputs = inputs_of("text")
    loaded = Backbone.from_pretrained(bert_folder, "text")
    assert torch.equal(encode(loaded, **inputs).last, encode(expected, **inputs).last)
    images = Backbone.from_pretrained(clip_folder, "image")
    assert images.n_layers == 2 and encode(images, **inputs_of("image")).last.shape[-1] == 32
    torch.testing.assert_close(images.pixel_shift.flatten(), torch.tensor([0.48 / 0.27, 0.46 / 0.26, 0.41 / 0.28]))
    skeleton = Backbone.skeleton(clip_folder, "text")
    assert next(skeleton.parameters()).is_meta and skeleton.pooling == "eos"


def test_incomplete_or_unusable_models(bert_folder, monkeypatch):
    with pytest.raises(PerPEFTError, match="quantization 4bit needs a GPU"), monkeypatch.context() as without:
        without.setattr(torch.cuda, "is_available", lambda: False)
        Backbone.from_pretrained(bert_folder, "text", "4bit")
    with pytest.raises(PerPEFTError, match="pip install bitsandbytes"), monkeypatch.context() as with_gpu:
        with_gpu.setattr(torch.cuda, "is_available", lambda: True)
        with_gpu.setattr("recbole_perpeft.pretrained.tower.importlib.util.find_spec", lambda name: None)
        Backbone.from_pretrained(bert_folder, "text", "8bit")
    with pytest.raises(PerPEFTError, match="'3bit' is not one of 8bit, 4bit"):
        Backbone.from_pretrained(bert_folder, "text", "3bit")
    with pytest.raises(PerPEFTError, match="has no image processor configuration"):
        Backbone.from_pretrained(bert_folder, "image")
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    logging.disable(logging.WARNING)
    try:
        with pytest.raises(PerPEFTError, match="lack 16 tensors of BertModel"):
            Backbone.from_pretrained(bert_folder, "text")
    finally:
        logging.disable(logging.NOTSET)
