"""MoRec's content encoders from settings and a folder of items."""

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.build import Surroundings
from recbole_perpeft.models.morec import MoRecContent, MoRecSettings
from recbole_perpeft.models.ways import adapt


def make_shop(folder):
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for token in ("a", "b"):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{token}.png")
    lines = "item_id:token\ttitle:token_seq\tcaption:token_seq\na\tred mug\ta mug\nb\ta round lamp on a table\tlamp\n"
    (folder / "shop.item").write_text(lines, encoding="utf-8")
    return folder


def content_of(around, **values):
    settings = MoRecSettings(**values, max_text_length=8)
    return adapt(MoRecContent(settings, around), settings.adaptation, settings.options, "adaptation").eval()


@pytest.mark.parametrize("kinds", [("text", "image"), ("text",), ("image",)])
def test_built_from_a_folder_of_items(tmp_path, clip_folder, kinds):
    fields = [{"text": "title", "image": "image"}[kind] for kind in kinds]
    items = ItemContent.load(make_shop(tmp_path / "shop"), "shop", ["a", "b"], fields=fields)
    names = {f"{kind}_encoder": str(clip_folder) if kind in kinds else None for kind in ("text", "image")}
    around = Surroundings(items, ["[PAD]", "b", "a"], tmp_path / "cache", False)
    content = content_of(around, **names, adaptation="lora")
    vectors = content(torch.arange(3), None)
    assert vectors.shape == (3, 64 * len(kinds)) and not vectors[0].any() and vectors[1:].any(dim=1).all()
    again = content_of(around, **names, adaptation="full")
    assert again.foundation_fingerprint == content.foundation_fingerprint


@pytest.mark.parametrize("fields", [("title", "caption"), ("image", "title"), ("image", "image"), ("caption",)])
def test_each_tower_reads_its_own_field(tmp_path, clip_folder, fields):
    items = ItemContent.load(make_shop(tmp_path / "shop"), "shop", ["a", "b"], fields=fields)
    towers = [{"field": field, "encoder": str(clip_folder)} for field in fields]
    settings = MoRecSettings(towers=towers)
    assert settings.fields == tuple(dict.fromkeys(fields))
    around = Surroundings(items, ["[PAD]", "b", "a"], tmp_path / "cache", False)
    content = content_of(around, towers=towers, adaptation="lora")
    vectors = content(torch.arange(3), None)
    for role, tower in settings.by_role.items():
        alone = [{"field": tower.field, "encoder": str(clip_folder)}]
        other = content_of(around, towers=alone, adaptation="lora")
        other.bank.heads[tower.kind].load_state_dict(content.bank.heads[role].state_dict())
        place = 0 if len(fields) == 1 or role == "image" else 64
        torch.testing.assert_close(vectors[:, place : place + 64], other(torch.arange(3), None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"adapter_rank": -1}, "adapter_rank is -1"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"adaptation": ""}, "adaptation is ''"),
    ],
)
def test_wrong_settings_name_their_key(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        MoRecSettings(text_encoder="bert", **settings)


def test_options_of_a_method_are_the_authors_and_the_users():
    settings = MoRecSettings(text_encoder="bert", adaptation="LoRA", lora_rank=2, peft_config={"lora_alpha": 4})
    assert settings.options == {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "lora_only"}
    assert MoRecSettings(text_encoder="bert", adaptation="ia3").options == {}
