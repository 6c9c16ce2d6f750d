"""What each method changes in a backbone, and what it trains."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    DebertaConfig,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    ViTMAEConfig,
)

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.tuning import HoulsbyAdapters, find_role, towers_of, tune
from recbole_perpeft.nn.tuned_content import TunedEncoders
from recbole_perpeft.pretrained.tower import Backbone
from support import tiny_backbones as tiny

ADAPTATIONS, LENGTH, SIZE, TINY = tiny.ADAPTATIONS, tiny.LENGTH, tiny.SIZE, tiny.TINY
Source, backbone, output = tiny.Source, tiny.backbone, tiny.output


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_what_a_method_changes_at_the_start(kind, adaptation):
    plain, tuned = backbone(kind), backbone(kind)
    tune(tuned, tiny.method(adaptation))
    difference = (output(plain) - output(tuned)).abs().max()
    if adaptation == "adapter":
        assert 0 < difference < 0.05
    else:
        assert difference == 0


def scramble(module, pattern, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if pattern in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_lora_adds_its_product_to_query_and_value(kind):
    plain, tuned = backbone(kind), backbone(kind)
    tune(tuned, tiny.method("lora", lora_rank=4, lora_alpha=3))
    scramble(tuned, "lora_")
    merged = dict(plain.named_parameters())
    n_changed = 0
    with torch.no_grad():
        for name, module in tuned.named_modules():
            if hasattr(module, "lora_A"):
                product = module.lora_B["default"].weight @ module.lora_A["default"].weight
                merged[f"{name}.weight"] += 3 / 4 * product
                n_changed += 1
    assert n_changed == 4
    torch.testing.assert_close(output(tuned), output(plain), atol=1e-5, rtol=1e-5)
    assert (output(plain) - output(backbone(kind))).abs().max() > 1e-2


def attention(layer, states, names, mask):
    """Two heads of eight, in a loop."""
    query, key, value = (getattr(layer, name)(states) for name in names)
    parts = []
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(~mask.bool().unsqueeze(1), float("-inf"))
        parts.append(scores.softmax(dim=-1) @ value[..., own])
    return torch.cat(parts, dim=-1)


def adapt(adapter, states):
    hidden = (states @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    return states + hidden @ adapter.up.weight.T + adapter.up.bias


@torch.no_grad()
def test_adapters_of_bert_come_before_the_layer_norms():
    tuned = backbone("text")
    tune(tuned, tiny.method("adapter", adapter_rank=5))
    scramble(tuned, "adapter")
    tuned.double()
    inputs = Source().inputs
    states = tuned.model.embeddings(inputs["input_ids"])
    for block in tuned.layers:
        heads = attention(block.attention.self, states, ("query", "key", "value"), inputs["attention_mask"])
        projected = adapt(block.attention.output.dropout.adapter, block.attention.output.dense(heads))
        states = block.attention.output.LayerNorm(projected + states)
        inner = functional.gelu(block.intermediate.dense(states))
        projected = adapt(block.output.dropout.adapter, block.output.dense(inner))
        states = block.output.LayerNorm(projected + states)
    torch.testing.assert_close(output(tuned), states)


@torch.no_grad()
def test_adapters_of_vit_come_before_the_residual_connections():
    tuned = backbone("image")
    tune(tuned, tiny.method("adapter", adapter_rank=5))
    scramble(tuned, "adapter")
    tuned.double()
    states = tuned.model.embeddings(Source().inputs["pixel_values"].double() / 255 * 2 - 1)
    block = tuned.layers[0]
    if not hasattr(block.attention, "q_proj"):
        pytest.skip("other names in transformers 4")
    everywhere = torch.ones(states.shape[:2])
    for block in tuned.layers:
        normed = block.layernorm_before(states)
        heads = attention(block.attention, normed, ("q_proj", "k_proj", "v_proj"), everywhere)
        states = states + adapt(block.attention.o_proj.adapter, block.attention.o_proj.layer(heads))
        inner = functional.gelu(block.mlp.fc1(block.layernorm_after(states)))
        states = states + adapt(block.mlp.fc2.adapter, block.mlp.fc2.layer(inner))
    torch.testing.assert_close(output(tuned), tuned.model.layernorm(states))


def test_adapters_start_small_and_without_biases():
    tuned = backbone("text")
    tune(tuned, tiny.method("adapter"))
    weights = [parameter for name, parameter in tuned.named_parameters() if "adapter" in name and "weight" in name]
    assert len(weights) == 8
    assert abs(torch.cat([weight.flatten() for weight in weights]).std() - 0.01) < 1e-3
    assert not any(p.any() for name, p in tuned.named_parameters() if "adapter" in name and "bias" in name)


LLAMA = LlamaConfig(**TINY, num_key_value_heads=2, vocab_size=20)
CLIP_TEXT = CLIPTextConfig(**TINY, vocab_size=20, max_position_embeddings=LENGTH, eos_token_id=2, bos_token_id=1)
CLIP_VISION = CLIPVisionConfig(**TINY, image_size=SIZE, patch_size=4)
DINO = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=4)
SWIGLU = Dinov2Config(**DINO.to_diff_dict() | {"use_swiglu_ffn": True})


@pytest.mark.parametrize(
    ("config", "kind"),
    [(LLAMA, "text"), (CLIP_TEXT, "text"), (CLIP_VISION, "image"), (DINO, "image"), (SWIGLU, "image")],
    ids=["Llama", "CLIP text", "CLIP vision", "DINOv2", "DINOv2 SwiGLU"],
)
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_other_encoders(config, kind, adaptation):
    model = TunedEncoders({kind: Backbone.from_config(config, kind)}, tiny.method(adaptation), "print").train()
    model(None, **Source().inputs).sum().backward()
    counts = {"lora": 2 * 2 * 2, "adapter": 2 * 2 * 4}
    brought_in = [p for name, p in model.named_parameters() if "lora_" in name or ".adapter." in name]
    assert len(brought_in) == counts.get(adaptation, 0)
    assert all(parameter.grad is not None for parameter in brought_in)


class Blocks4(nn.Module):
    """Names inside a block of a ViT of transformers 4."""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "attention": nn.ModuleDict({name: nn.Linear(2, 2) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(2, 2), "dropout": nn.Dropout()}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(2, 2)})
        self.output = nn.ModuleDict({"dense": nn.Linear(2, 2), "dropout": nn.Dropout()})


def test_roles_by_names_of_transformers_4():
    (vit,) = towers_of(backbone("image"))
    found = {
        role: find_role(Blocks4(), role, vit)
        for role in ("query projection", "value projection", "attention output projection")
    }
    assert found == {
        "query projection": "attention.attention.query",
        "value projection": "attention.attention.value",
        "attention output projection": "attention.output.dense",
    }
    assert find_role(Blocks4(), "feed-forward output projection", vit) == "output.dense"


def test_an_encoder_without_separate_projections_is_refused():
    gpt = Backbone.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20), "text")
    with pytest.raises(PerPEFTError, match="GPT2Model has no modules that lora usually adapts.*c_attn"):
        tune(gpt, tiny.method("lora"))


def test_quantised_weights_cannot_be_trained_fully():
    quantised = backbone("text")
    quantised.layers[0].intermediate.dense.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), False)
    with pytest.raises(PerPEFTError, match="full cannot train the quantised weights of BertModel"):
        tune(quantised, tiny.method("full"))


def test_wrong_ranks():
    with pytest.raises(PerPEFTError, match="adapter_rank is -1"):
        HoulsbyAdapters(adapter_rank=-1)
    with pytest.raises(PerPEFTError, match="positive integer"):
        tune(backbone("text"), tiny.method("lora", lora_rank=-1))


def test_bitfit_trains_biases_of_every_name():
    deberta = Backbone.from_config(DebertaConfig(**TINY, vocab_size=20, max_position_embeddings=8), "text")
    origins, _ = tune(deberta, tiny.method("bitfit"))
    assert {"q_bias", "v_bias", "bias"} == {name.rpartition(".")[2] for name in origins}


def test_an_encoder_that_leaves_out_patches_reads_all_of_them():
    encoder = Backbone.from_config(ViTMAEConfig(**TINY, image_size=SIZE, patch_size=2), "image")
    first, second = output(encoder), output(encoder)
    assert first.shape[1] == (SIZE // 2) ** 2 + 1
    torch.testing.assert_close(first[:, 0], second[:, 0], atol=1e-5, rtol=1e-4)
