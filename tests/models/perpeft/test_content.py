"""PerPEFT's content encoders and item encoders from settings."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.build import Surroundings
from recbole_perpeft.models.perpeft.content import ItemEncoderSettings, build_item_encoder
from recbole_perpeft.nn.content import AdaptedContent, FrozenContent
from recbole_perpeft.nn.joined_content import JoinedContent
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone
from support.tiny_encoders import make_bert, make_vit

TOKENS = ["[PAD]", "b", "a", "c"]
TITLES = {"a": "red mug", "b": "a lamp on a table with stripes", "c": "shoe"}
# Of each way of adapting: whether it leaves an encoder as it is at the start.
WAYS = {"lora": True, "ia3": True, "ln_tuning": True, "bitfit": True, "full": True, "adapter": False, "none": True}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for token in TITLES:
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{token}.png")
    lines = "".join(f"{token}\t{title}\n" for token, title in TITLES.items())
    (folder / "shop.item").write_text(f"item_id:token\ttitle:token_seq\n{lines}")
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return {"text": str(make_bert(folder / "bert")), "image": str(make_vit(folder / "vit"))}


@pytest.fixture
def build(shop, tmp_path):
    def make(**values):
        settings = ItemEncoderSettings(**{"hidden_size": 8, "cache_dtype": "float32"} | values)
        content = ItemContent.load(shop, "shop", TOKENS[1:], fields=settings.fields)
        torch.manual_seed(0)
        return build_item_encoder(settings, Surroundings(content, TOKENS, tmp_path / "cache", False)).eval()

    return make


def of_kinds(towers, kinds):
    return {"foundation_model": None} | {f"{kind}_encoder": towers[kind] for kind in kinds}


@pytest.mark.parametrize("peft_type", WAYS)
def test_a_dual_encoder_in_every_way(build, clip_folder, peft_type):
    encoder = build(foundation_model=str(clip_folder), peft_type=peft_type)
    assert encoder.encode_catalogue(None).shape == (len(TOKENS), 8)
    assert encoder.foundation_fingerprint == FoundationModel.from_pretrained(clip_folder).fingerprint
    content = encoder.content_encoder
    assert isinstance(content, FrozenContent if peft_type == "none" else AdaptedContent)
    frozen = build(foundation_model=str(clip_folder), peft_type="none").content_encoder
    same = torch.allclose(content(torch.arange(4), None), frozen(torch.arange(4), None), atol=1e-5)
    assert same == WAYS[peft_type]


@torch.no_grad()
def plain(shop, towers, kinds):
    """Content of towers without any of our content encoders: an item at a time, unit vectors, images first."""
    vectors = torch.zeros(len(TOKENS), 16 * len(kinds))
    for place, kind in enumerate(kind for kind in ("image", "text") if kind in kinds):
        backbone = Backbone.from_pretrained(towers[kind], kind)
        processor = Processor.from_encoders(**{f"{kind}_encoder": towers[kind]}, max_text_length=None)
        for row, token in enumerate(TOKENS[1:], start=1):
            if kind == "image":
                pixels = processor.image(Image.open(shop / "images" / f"{token}.png").convert("RGB"))
                inputs = {"pixel_values": torch.from_numpy(pixels).unsqueeze(0)}
            else:
                ids, mask = processor.text([TITLES[token]])
                inputs = {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(mask).long()}
            vector = backbone.pooled_states((), backbone.pooling, **inputs)[1]
            vectors[row, 16 * place : 16 * place + 16] = functional.normalize(vector[0], dim=0)
    return vectors


@pytest.mark.parametrize("kinds", [("text", "image"), ("text",), ("image",)])
@pytest.mark.parametrize("peft_type", WAYS)
def test_towers_give_their_unit_vectors_and_each_group_its_own(build, shop, towers, kinds, peft_type):
    encoder = build(**of_kinds(towers, kinds), peft_type=peft_type)
    content, items = encoder.content_encoder, torch.tensor([3, 0, 1, 2, 1])
    assert isinstance(content, JoinedContent)
    found = content(items, None)
    if WAYS[peft_type]:
        torch.testing.assert_close(found, plain(shop, towers, kinds)[items], atol=1e-5, rtol=1e-4)
    for part in found[items > 0].split(16, dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(4))
    encoder.personalise(2)
    owned = [(name, parameter) for name, parameter in content.named_parameters() if ".modules_of_groups.1." in name]
    assert {name.split(".")[1] for name, _ in owned} == (set() if peft_type == "none" else set(kinds))
    with torch.no_grad():
        for _, parameter in owned:
            parameter += 0.1 * torch.randn_like(parameter)
    assert torch.equal(content(items, 0), found) and torch.equal(content(items, None), found)
    assert torch.equal(content(items, 1), found) == (peft_type == "none")
    torch.testing.assert_close(content.encode_tokens(["c"], 1), content(items, 1)[:1])


@pytest.mark.parametrize("kinds", [("text", "image"), ("text",), ("image",)])
def test_frozen_blocks_of_towers_are_stored(build, towers, tmp_path, kinds):
    targets = r".*layers?\.2\..*(q_proj|v_proj|query|value)"
    top = {"peft_config": {"target_modules": targets, "lora_dropout": 0.0}} | of_kinds(towers, kinds)
    found, expected = build(**top), build(**top, cache_frozen_blocks=False)
    expected.load_state_dict(found.state_dict())
    assert len(list((tmp_path / "cache").glob("states-of-*-block-2-*.npy"))) == len(kinds)
    gradients = []
    for encoder in (found, expected):
        encoder.content_encoder(torch.arange(4), None).pow(3).sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 4 * len(kinds)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.encode_catalogue(None), expected.encode_catalogue(None), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", ["mean", "mean_all"])
def test_stored_blocks_are_those_of_an_encoder_that_sees_padding_or_not(build, towers, first):
    """`mean_all` hides the mask, so that states of other poolings are not its own; the longest text fills the row."""
    top = of_kinds(towers, ("text",)) | {"adapt_last": 1, "max_text_length": 5}
    build(**top, text_pooling=first)
    for pooling in "mean", "mean_all":
        found, expected = (build(**top, text_pooling=pooling, cache_frozen_blocks=stored) for stored in (True, False))
        expected.load_state_dict(found.state_dict())
        torch.testing.assert_close(found.encode_catalogue(None), expected.encode_catalogue(None), atol=1e-5, rtol=1e-4)


def test_a_block_that_trains_a_bias_alone_is_not_stored(build, clip_folder, tmp_path):
    for peft_type in ("bitfit", "full"):
        build(foundation_model=str(clip_folder), peft_type=peft_type)
    assert not list((tmp_path / "cache").glob("states-of-*"))


def test_checkpoints_of_towers_hold_what_is_trained(build, towers):
    settings = of_kinds(towers, ("text", "image")) | {"peft_type": "bitfit"}
    encoder, other = build(**settings), build(**settings)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    state = encoder.state_dict()
    assert {name for name in state if "content_encoder" in name} == {
        f"content_encoder.{name}" for name, p in encoder.content_encoder.named_parameters() if p.requires_grad
    }
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(other.encode_catalogue(None), encoder.encode_catalogue(None), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foundation_model": ""}, "0 towers"),
        ({"peft_type": ""}, "peft_type is ''"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"encoder_chunk_size": 0}, "encoder_chunk_size is 0"),
        ({"content_weight": 0.0}, "content_weight is 0.0"),
        ({"content_weight": float("nan")}, "content_weight is nan"),
        ({"max_text_length": 0}, "max_text_length is 0"),
        ({"text_encoder": "bert"}, "foundation_model, text_encoder: .*leave out foundation_model or text_encoder"),
        (
            {"towers": [{"field": "title", "encoder": "bert"}]},
            "foundation_model, towers: a model has one dual encoder",
        ),
    ],
)
def test_wrong_settings_name_their_key(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        ItemEncoderSettings(**settings)


def test_fields_follow_from_the_encoders():
    assert ItemEncoderSettings().fields == ("title", "image")
    assert ItemEncoderSettings(foundation_model=None, text_encoder="bert").fields == ("title",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"peft_type": "lorra"},
            r"peft_type: 'lorra' is unknown \(did you mean lora\?\); choose one of .*ia3.*none.*vera",
        ),
        ({"peft_type": "none", "peft_config": {"r": 4}}, "peft_config: means nothing with peft_type none"),
        (
            {"peft_type": "adapter", "peft_config": {"r": 4}},
            "peft_config: r means nothing.* choose among adapter_rank",
        ),
        ({"peft_type": "adapter", "peft_config": {"adapter_rank": 0}}, "adapter_rank is 0"),
        ({"peft_type": "iisan", "peft_config": {"r": 4}}, "peft_config: r means nothing with peft_type iisan"),
        ({"peft_type": "prefix_tuning"}, "prefix_tuning cannot be used here"),
    ],
)
def test_wrong_ways_show_before_images_are_read(clip_folder, tmp_path, options, message):
    settings = ItemEncoderSettings(foundation_model=str(clip_folder), **options)
    with pytest.raises(PerPEFTError, match=message):
        build_item_encoder(settings, Surroundings(None, ["[PAD]", "a"], tmp_path, False))


def test_the_last_blocks_of_a_model_or_of_its_towers(build, clip_folder, towers):
    spelled = {"target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"}
    items = torch.arange(len(TOKENS))
    first = build(foundation_model=str(clip_folder), adapt_last=1)
    with torch.no_grad():
        for parameter in first.content_encoder.bank.parameters_of(None):
            parameter += 0.3
    for values in ({"peft_config": spelled}, {"adapt_last": 1, "cache_frozen_blocks": False}):
        other = build(foundation_model=str(clip_folder), **values)
        other.load_state_dict(first.state_dict())
        torch.testing.assert_close(other(items, None), first(items, None))
    of_towers = build(**of_kinds(towers, ("text", "image")), adapt_last=1).content_encoder
    for tower in of_towers.towers.values():
        assert all("/2/" in name for name in tower.bank.modules_of_groups.of(None)), "the last of three"


def test_what_adapts_no_block_has_no_last_ones():
    with pytest.raises(PerPEFTError, match="adapt_last is 1, but peft_type none adapts no block"):
        ItemEncoderSettings(peft_type="none", adapt_last=1)
