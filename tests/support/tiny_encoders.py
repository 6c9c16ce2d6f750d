"""Tiny encoders with random weights, as folders; in a module that scripts of their own process can import."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

WORDS = ["red", "blue", "green", "mug", "shoe", "lamp", "on", "a", "table"]
SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    **TOWER,
    "vocab_size": len(WORDS) + len(SPECIALS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def write_tokenizer(folder: Path, specials: bool = True) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIALS, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
        )
    pad = {"pad_token": "<pad>"} if specials else {"padding_side": "left"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", model_max_length=12, **pad
    ).save_pretrained(folder)


def make_bert(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    BertModel(BertConfig(**TEXT)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def make_llama(folder: Path) -> Path:
    """Pads at the left, and has neither special tokens nor one for padding."""
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(**TEXT)).save_pretrained(folder)
    write_tokenizer(folder, specials=False)
    return folder


def make_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**TOWER, image_size=16, patch_size=8))
    torch.nn.init.normal_(model.layernorm.weight)
    model.save_pretrained(folder)
    preprocessing = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def titles(n: int) -> list[str]:
    """Of one to eight words."""
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 9))) for _ in range(n)]


def write_shop(folder: Path, n: int, images: bool = False, header: str = "title", texts: list[str] | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder, [(f"i{i}", text) for i, text in enumerate(texts or titles(n))], header)
    if images:
        (folder / "images").mkdir()
        generator = np.random.default_rng(4)
        for i in range(n):
            pixels = generator.integers(0, 256, (20, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"i{i}.png")
    return folder


def write_items(folder: Path, rows: list[tuple[str, str]], header: str = "title") -> None:
    lines = "".join(f"{token}\t{text}\n" for token, text in rows)
    (folder / "shop.item").write_text(f"item_id:token\t{header}:token_seq\n{lines}", encoding="utf-8")
