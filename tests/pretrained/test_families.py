"""Families of encoders: how one is recognised, and how one is added from outside."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, ResNetConfig, T5Config, ViTConfig, ViTModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.methods import make_peft_config
from recbole_perpeft.nn.adapt.tuning import tune
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.pretrained import families
from recbole_perpeft.pretrained.families import Family, find_encoder, register_family
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone
from support.foundations import BERT_TEXT as TEXT
from support.foundations import BERT_TOWER as TOWER
from support.foundations import clip_config
from support.tiny_backbones import method

VISION = {**TOWER, "image_size": 16, "patch_size": 8}
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
PIXELS = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch):
    monkeypatch.setattr(families, "_added", [])


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (T5Config(d_model=32, num_layers=2), "text", "T5Model has no list of transformer blocks"),
        (ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]), "image", "ResNetModel has no list"),
        (BertConfig(**TEXT), "image", "BertModel takes input_ids; choose an encoder of images"),
        (ViTConfig(**VISION), "text", "ViTModel takes pixel_values; choose an encoder of texts"),
        (ViTConfig(**VISION), "sound", "'sound' is not one of text, image"),
    ],
)
def test_other_models_are_refused(config, kind, message):
    with pytest.raises(PerPEFTError, match=message), torch.device("meta"):
        Backbone.from_config(config, kind)


def test_blocks_are_found_under_the_names_of_transformers_4():
    vit = nn.Module()
    vit.encoder, vit.layernorm = nn.Module(), nn.LayerNorm(4)
    vit.encoder.layer = nn.ModuleList([nn.Linear(4, 4)])
    _, layout = find_encoder(vit, "image")
    assert (layout.blocks, layout.norm) == ("encoder.layer", "layernorm")


def test_a_family_of_a_type_comes_before_those_that_look_alike():
    kept = Family("mine", "text", "encoder.layer", None, "mean", model_types=frozenset({"bert"}))
    register_family(kept)
    register_family(Family("other", "text", "encoder.layer", None, "eos", model_types=frozenset({"roberta"})))
    bert = BertModel(BertConfig(**TEXT))
    assert find_encoder(bert, "text") == (bert, kept)
    assert Backbone(bert, "text").pooling == "mean"
    again = register_family(Family("mine", "text", "encoder.layer", None, "cls"))
    assert find_encoder(bert, "text")[1] is again
    assert [family.name for family in families.added_families()] == ["other", "mine"]
    assert pickle.loads(pickle.dumps(again)) == copy.deepcopy(again) == again


def test_how_a_plugin_reads_an_encoder_belongs_to_its_fingerprint(tmp_path):
    BertModel(BertConfig(**TEXT)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    found = [describe_backbone(tmp_path, "text").fingerprint]
    for norm in None, "embeddings.LayerNorm":
        register_family(Family("mine", "text", "encoder.layer", norm, "mean", model_types=frozenset({"bert"})))
        found.append(describe_backbone(tmp_path, "text").fingerprint)
    assert len(set(found)) == 3


def test_a_family_says_where_its_tower_is_and_what_peft_adapts():
    holder = nn.Module()
    holder.config, holder.eyes = clip_config(), ViTModel(ViTConfig(**VISION))
    # Names differ between releases of transformers.
    blocks = find_encoder(holder.eyes, "image")[1].blocks
    linear = {path.rpartition(".")[2] for path, one in holder.eyes.named_modules() if isinstance(one, nn.Linear)}
    first, *_, last = sorted(linear)
    targets = {"": {"target_modules": (first,)}, "ia3": {"target_modules": (last,), "feedforward_modules": ()}}
    family = Family(
        "eyes", "image", blocks, "layernorm", "cls", model_types=frozenset({"clip"}), tower="eyes", targets=targets
    )
    register_family(family)
    assert find_encoder(holder, "image") == (holder.eyes, family)
    assert make_peft_config("lora", None, holder).target_modules == {first}
    assert make_peft_config("ia3", None, holder).target_modules == {last}


@torch.no_grad()
def test_a_tower_without_blocks_gives_final_vectors_alone():
    types = frozenset({"resnet"})
    register_family(Family("ResNet", "image", None, None, "own", model_types=types, width="config.hidden_sizes"))
    tower = Backbone.from_config(RESNET, "image")
    assert (tower.n_layers, tower.width, tower.pooling) == (0, 12, "own")
    states, final = tower.pooled_states((), "own", pixel_values=PIXELS)
    assert states.shape == (4, 0, 12)
    theirs = tower.model(PIXELS / 127.5 - 1).last_hidden_state.mean(dim=(2, 3))
    torch.testing.assert_close(final, theirs)
    with pytest.raises(PerPEFTError, match="image_pooling: 'cls' does not go with ResNetModel; choose one of own"):
        tower.check_pooling("cls")
    with pytest.raises(PerPEFTError, match="stages of ResNetModel differ in width.*choose MoRec with adaptation full"):
        tower.pooled_states((0,), "own", pixel_values=PIXELS)
    with pytest.raises(PerPEFTError, match="a side network reads states of one width.*choose MoRec"):
        LayerDropSettings().states([12, tower.n_layers])
    with pytest.raises(PerPEFTError, match="what reads or adapts blocks of one width"):
        tune(tower, method("adapter"))
    with pytest.raises(
        PerPEFTError, match="ResNetModel has no modules that lora usually adapts.*choose full or bitfit"
    ):
        tune(tower, method("lora"))


def test_batch_norms_of_a_trained_tower_keep_their_statistics():
    types = frozenset({"resnet"})
    register_family(Family("ResNet", "image", None, None, "own", model_types=types, width="config.hidden_sizes"))
    tower = Backbone.from_config(RESNET, "image")
    tune(tower, method("full"))
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower.train()
    tower.pooled_states((), "own", pixel_values=PIXELS)[1].sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in tower.named_buffers())
    assert all(parameter.grad is not None for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Family("x", "sound", "layers", None, "cls"), "kind 'sound' is not one of text, image"),
        (Family("x", "image", None, None, "own"), "needs model_types"),
        (Family("x", "image", None, None, "mean", model_types=frozenset({"x"})), "the pooling own"),
    ],
)
def test_families_that_cannot_be_told_or_read_are_refused(family, message):
    with pytest.raises(PerPEFTError, match=message):
        register_family(family)
