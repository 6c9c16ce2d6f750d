"""Tiny foundation models with random weights, as folders with their tokenizer and image processor."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

WORDS = ["red", "blue", "green", "round", "square", "mug", "shoe", "lamp", "on", "a", "table", "with", "stripes"]
SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
TEXT_LENGTH = 12
IMAGE_SIZE = 16
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {
    **_TOWER,
    "vocab_size": len(WORDS) + len(SPECIALS),
    "max_position_embeddings": TEXT_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
BERT_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
BERT_TEXT = {
    **BERT_TOWER,
    "vocab_size": 50,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {**_TOWER, "image_size": IMAGE_SIZE, "patch_size": 8}


def clip_config() -> CLIPConfig:
    text, vision = {**_TEXT, "projection_dim": 20}, {**_VISION, "projection_dim": 20}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)


def siglip_config() -> SiglipConfig:
    return SiglipConfig(text_config={**_TEXT, "projection_size": 32}, vision_config=_VISION)


def write_processor(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIALS, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=TEXT_LENGTH,
    ).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))


def _folder(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    write_processor(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return _folder(tmp_path_factory.mktemp("foundation") / "clip", CLIPModel(clip_config()))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return _folder(tmp_path_factory.mktemp("foundation") / "siglip", SiglipModel(siglip_config()))


@pytest.fixture(scope="session")
def batch() -> dict[str, torch.Tensor]:
    """Three items; texts of 3, 5 and 12 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(3, TEXT_LENGTH, dtype=torch.long)
    for row, length in enumerate((3, 5, TEXT_LENGTH)):
        ids[row, 0], ids[row, length - 1] = 2, 3
        ids[row, 1 : length - 1] = torch.randint(4, len(WORDS) + 4, (length - 2,), generator=generator)
    pixels = torch.randint(0, 256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.uint8)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture
def tiny_clip():
    """Makes the same CLIP model again and again, not yet wrapped."""

    def make() -> CLIPModel:
        torch.manual_seed(0)
        return CLIPModel(clip_config())

    return make


@pytest.fixture
def bert_folder(tmp_path, siglip_folder) -> Path:
    """A BERT with the tokenizer of another model."""
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    BertModel(BertConfig(**BERT_TEXT)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((siglip_folder / name).read_bytes())
    return folder
