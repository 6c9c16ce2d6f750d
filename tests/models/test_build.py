"""Content encoders from settings and a folder of items."""

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.build import Surroundings, build_tuned_content
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.nn.adapt.tuning import TuningSettings


def make_shop(folder):
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for token in ("a", "b"):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{token}.png")
    lines = "item_id:token\ttitle:token_seq\tcaption:token_seq\na\tred mug\ta mug\nb\ta round lamp on a table\tlamp\n"
    (folder / "shop.item").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kinds", [("text", "image"), ("text",), ("image",)])
def test_built_from_a_folder_of_items(tmp_path, clip_folder, kinds):
    fields = [{"text": "title", "image": "image"}[kind] for kind in kinds]
    items = ItemContent.load(make_shop(tmp_path / "shop"), "shop", ["a", "b"], fields=fields)
    names = {f"{kind}_encoder": str(clip_folder) if kind in kinds else None for kind in ("text", "image")}
    settings = EncoderSettings(**names, max_text_length=8)
    around = Surroundings(items, ["[PAD]", "b", "a"], tmp_path / "cache", False)
    content = build_tuned_content(settings, TuningSettings("lora"), around)
    vectors = content(torch.arange(3), None)
    assert vectors.shape == (3, 64 * len(kinds)) and not vectors[0].any() and vectors[1:].any(dim=1).all()
    again = build_tuned_content(settings, TuningSettings("full"), around)
    assert again.foundation_fingerprint == content.foundation_fingerprint


@pytest.mark.parametrize("fields", [("title", "caption"), ("image", "title"), ("image", "image"), ("caption",)])
def test_each_tower_reads_its_own_field(tmp_path, clip_folder, fields):
    items = ItemContent.load(make_shop(tmp_path / "shop"), "shop", ["a", "b"], fields=fields)
    towers = [{"field": field, "encoder": str(clip_folder)} for field in fields]
    settings = EncoderSettings(towers=towers, max_text_length=8)
    assert settings.fields == tuple(dict.fromkeys(fields))
    around = Surroundings(items, ["[PAD]", "b", "a"], tmp_path / "cache", False)
    content = build_tuned_content(settings, TuningSettings("lora"), around).eval()
    vectors = content(torch.arange(3), None)
    for role, tower in settings.by_role.items():
        alone = {"towers": [{"field": tower.field, "encoder": str(clip_folder)}], "max_text_length": 8}
        other = build_tuned_content(EncoderSettings(**alone), TuningSettings("lora"), around).eval()
        other.bank.heads[tower.kind].load_state_dict(content.bank.heads[role].state_dict())
        place = 0 if len(fields) == 1 or role == "image" else 64
        torch.testing.assert_close(vectors[:, place : place + 64], other(torch.arange(3), None))
