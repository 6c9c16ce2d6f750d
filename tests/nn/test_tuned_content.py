"""Encoders that train with the recommender, and heads on the stored vectors of frozen ones."""

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, ViTConfig

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.groups import personalise
from recbole_perpeft.nn.adapt.methods import PeftMethod
from recbole_perpeft.nn.content import AdaptedContent
from recbole_perpeft.nn.tuned_content import TunedEncoders
from recbole_perpeft.pretrained.tower import Backbone
from support import tiny_backbones as tiny

ADAPTATIONS, Source, backbone = tiny.ADAPTATIONS, tiny.Source, tiny.backbone


def encoders(adaptation, kinds=("text", "image"), **settings):
    tuned = TunedEncoders({kind: backbone(kind) for kind in kinds}, tiny.method(adaptation), "print", **settings)
    return tuned.eval()


ROW_OF_ITEM = torch.tensor([-1, 2, 0, 1, 3, 5, 4])


def content_of(model, chunk_size=4, gradient_checkpointing=False):
    return AdaptedContent(model, Source(), ROW_OF_ITEM, chunk_size, gradient_checkpointing)


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("adaptation", "expected"),
    [("full", 194_897_216), ("adapter", 4_965_440), ("lora", 833_600), ("bitfit", 412_736)],
)
def test_parameter_counts_of_the_paper(adaptation, expected):
    with torch.device("meta"):
        base = {
            "text": Backbone.from_config(BertConfig(), "text"),
            "image": Backbone.from_config(ViTConfig(), "image"),
        }
        model = TunedEncoders(base, tiny.method(adaptation), "print")
    user_encoder, fusion = 100_224, 128 * 64 + 64
    assert sum(parameter.numel() for parameter in model.parameters_of(None)) + user_encoder + fusion == expected


def test_content_is_image_and_text_heads_on_class_tokens():
    model, inputs = encoders("bitfit"), Source().inputs
    text, image = (model.backbones[kind].model for kind in ("text", "image"))
    pixels = inputs["pixel_values"].float() / 255 * 2 - 1
    with torch.no_grad():
        vectors = {
            "image": image(pixel_values=pixels).last_hidden_state[:, 0],
            "text": text(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[:, 0],
        }
        content = model(None, **inputs)
    for place, kind in enumerate(("image", "text")):
        head = model.heads[kind][0]
        weight, bias = head.weight.detach().double(), head.bias.detach().double()
        expected = functional.gelu(vectors[kind].double() @ weight.T + bias)
        part = content[:, 64 * place : 64 * (place + 1)]
        torch.testing.assert_close(part.double(), expected, atol=1e-5, rtol=1e-5)
    assert not model.heads["image"][0].bias.any() and model.heads["text"][0].bias.any()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_one_backbone_alone_reads_its_inputs_alone(kind):
    model, inputs = encoders("lora", (kind,)), Source().inputs
    own = {name: values for name, values in inputs.items() if (name == "pixel_values") == (kind == "image")}
    assert model.content_size == 64
    torch.testing.assert_close(model(None, **own), model(None, **inputs))
    assert {group.rpartition("_")[2] for group in model.parameter_groups().values()} == {kind, "recsys"}


def test_another_pooling_can_be_chosen():
    inputs = {name: values for name, values in Source().inputs.items() if name != "pixel_values"}
    usual, mean = (
        TunedEncoders({"text": backbone("text")}, tiny.method("bitfit"), "print", {"text": pooling})
        for pooling in (None, "mean")
    )
    mean.heads.load_state_dict(usual.heads.state_dict())
    assert (usual(None, **inputs) - mean(None, **inputs)).abs().max() > 1e-3
    with pytest.raises(PerPEFTError, match="text_pooling: 'max'"):
        TunedEncoders({"text": backbone("text")}, tiny.method("bitfit"), "print", {"text": "max"})


EXPECTED_GROUPS = {
    "full": {"recsys", "backbone_text", "backbone_image"},
    "adapter": {"recsys", "side_text", "side_image"},
    "lora": {"recsys", "side_text", "side_image", "backbone_text", "backbone_image"},
    "bitfit": {"recsys", "backbone_text", "backbone_image"},
}


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_each_trained_parameter_has_a_group(adaptation):
    content = content_of(encoders(adaptation))
    groups = content.parameter_groups()
    assert set(groups) == trained(content)
    assert set(groups.values()) == EXPECTED_GROUPS[adaptation]
    for name, group in groups.items():
        assert (group == "recsys") == name.startswith("bank.heads.")
        assert group.startswith("side") == ("lora_" in name or ".adapter." in name)
        assert group == "recsys" or f".{group.rpartition('_')[2]}." in name
    if adaptation in ("lora", "bitfit"):
        assert all(name.endswith("bias") for name, group in groups.items() if group.startswith("backbone"))


def train_step(content, seed=0):
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in content.parameters() if p.requires_grad], lr=1e-2)
    content(torch.tensor([1, 0, 3, 5, 6, 2]), None).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_step_moves_what_trains_and_nothing_else(adaptation):
    content = content_of(encoders(adaptation)).train()
    before = {name: parameter.detach().clone() for name, parameter in content.named_parameters()}
    train_step(content)
    moved = {name for name, parameter in content.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained(content)
    # The softmax of attention does not see a bias of keys; a pooler comes after the last states; lora_A waits for
    # lora_B to leave zero.
    idle = ("key.bias", "k_proj.bias", "pooler.dense.bias", "lora_A.default.weight")
    assert all(name.endswith(idle) for name in trained(content) - moved)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_state_dict_is_what_trains(adaptation):
    content = content_of(encoders(adaptation)).train()
    train_step(content)
    state = {name: tensor.clone() for name, tensor in content.state_dict().items()}
    assert set(state) == trained(content)
    fresh = content_of(encoders(adaptation))
    items = torch.arange(7)
    assert not torch.equal(fresh(items, None), content.eval()(items, None))
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh(items, None), content(items, None))
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict(state, strict=True)


@pytest.mark.parametrize("train_mode", [False, True])
def test_dropout_of_backbones_is_on_only_when_asked_for(train_mode):
    content = content_of(encoders("full", train_mode=train_mode))
    items = torch.arange(7)
    first, second = content.train()(items, None), content(items, None)
    assert torch.equal(first, second) != train_mode
    assert content.training and content.bank.heads.training
    assert torch.equal(content.eval()(items, None), content(items, None))


def test_dropout_of_what_a_method_brings_in_follows_training():
    lora = PeftMethod("lora", {"r": 8, "lora_dropout": 0.5, "init_lora_weights": False})
    tuned = TunedEncoders({kind: backbone(kind) for kind in ("text", "image")}, lora, "print", train_mode=False)
    content = content_of(tuned)
    first, second = content.train()(torch.arange(7), None), content(torch.arange(7), None)
    assert not torch.equal(first, second)
    assert torch.equal(content.eval()(torch.arange(7), None), content(torch.arange(7), None))


def test_pads_are_zero_and_chunks_do_not_matter():
    model = encoders("adapter")
    items = torch.tensor([3, 0, 1, 6, 6, 0])
    whole, chunked = (content_of(model, size)(items, None) for size in (100, 2))
    torch.testing.assert_close(whole, chunked, atol=1e-6, rtol=1e-5)
    assert not whole[[1, 5]].any() and whole[0].any()
    rows = Source().batch(ROW_OF_ITEM[[3, 6]])
    torch.testing.assert_close(whole[[0, 3]], model(None, **rows), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(content_of(model).encode_tokens(["1", "4"], None), model(None, **rows))
    assert not content_of(model)(torch.tensor([0]), None).any()


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_gradient_checkpointing_gives_the_same_gradients(adaptation):
    gradients = []
    for checkpointing in (False, True):
        content = content_of(encoders(adaptation, train_mode=True), 3, checkpointing).train()
        torch.manual_seed(1)
        content(torch.arange(7), None).square().sum().backward()
        gradients.append({name: p.grad for name, p in content.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() <= trained(content)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_all_groups_share_what_is_trained(adaptation):
    content = content_of(encoders(adaptation))
    before = set(content.state_dict())
    personalise(content, 2)
    assert set(content.state_dict()) == before
    assert torch.equal(content(torch.arange(7), 1), content(torch.arange(7), None))


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_mixed_precision_gives_float32_content_and_gradients(adaptation):
    content = content_of(encoders(adaptation), 2, gradient_checkpointing=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = content(torch.arange(7), None)
    assert vectors.dtype == torch.float32
    vectors.sum().backward()
    gradients = [parameter.grad for parameter in content.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.dtype == torch.float32 for gradient in gradients)
