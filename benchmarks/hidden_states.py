"""Time and memory of building the cache of hidden states, over the bare forward pass of the encoder.

Time: building a cache of texts over tokenising and encoding the same batches in a plain loop that keeps nothing.
Memory: the most that building a large cache takes beyond what the encoder takes, over the size of that cache.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from content_cache import PeakMemory
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings

TIME_LIMIT = 1.2
MEMORY_LIMIT = 0.5
BATCH_ROWS = 64
CHUNK_ROWS = 8 * BATCH_ROWS
N_WORDS = 500
MAX_LENGTH = 30
N_LAYERS, N_LAYERS_SHALLOW = 6, 2


def make_encoder(folder: Path, width: int, n_layers: int) -> Path:
    """A BERT with random weights and the words `w0`, `w1` ..."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*specials, *(f"w{i}" for i in range(N_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_data_set(folder: Path, n_items: int, n_words: int) -> ItemContent:
    """Titles of three to `n_words` words."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, n_words + 1, n_items)
    lines = [
        f"{i}\t{' '.join(f'w{word}' for word in generator.integers(0, N_WORDS, n))}\n" for i, n in enumerate(lengths)
    ]
    folder.mkdir()
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(lines), encoding="utf-8")
    return ItemContent.load(folder, "shop", [str(i) for i in range(n_items)], fields=("title",))


@torch.inference_mode()
def plain_loop(content: ItemContent, encoder: Path) -> None:
    """The batches of the cache: chunks of rows, sorted by length."""
    backbone = Backbone.from_pretrained(encoder, "text")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    for start in range(0, len(content), CHUNK_ROWS):
        titles = sorted(content.titles[start : start + CHUNK_ROWS], key=lambda title: title.count(" "))
        for place in range(0, len(titles), BATCH_ROWS):
            batch = tokenizer(
                titles[place : place + BATCH_ROWS],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            backbone.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def build(content: ItemContent, encoder: Path, n_layers: int, folder: Path) -> HiddenStateCache:
    settings = HiddenStateSettings(
        str(encoder), tuple(range(n_layers + 1)), "mean", MAX_LENGTH, "float32", batch_size=BATCH_ROWS, device="cpu"
    )
    return HiddenStateCache.open_or_build(content, "title", settings, folder, show_progress=False)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure_time(content: ItemContent, encoder: Path, folder: Path, n_turns: int) -> float:
    """Time of building over that of the plain loop; each the fastest of some turns, taken in turn."""
    plain, built = [], []
    for turn in range(n_turns):
        plain.append(seconds(plain_loop, content, encoder))
        built.append(seconds(build, content, encoder, N_LAYERS, folder / f"cache{turn}"))
    rate = len(content) / min(built)
    print(f"{len(content)} titles: plain loop {min(plain):.2f} s, building {min(built):.2f} s, {rate:.0f} titles/s")
    return min(built) / min(plain)


def measure_memory(content: ItemContent, encoder: Path, folder: Path) -> float:
    """Growth over the plain loop while building and reading everything, over the size of the cache."""
    with PeakMemory() as plain:
        plain_loop(content, encoder)
    with PeakMemory() as building:
        cache = build(content, encoder, N_LAYERS_SHALLOW, folder)
        cache.final(torch.randint(0, cache.n_rows, (BATCH_ROWS,)))
    growth = max(0, building.n_bytes - plain.n_bytes)
    print(f"cache of {cache.n_bytes() / 2**20:.0f} MiB: building takes {growth / 2**20:.0f} MiB more than encoding")
    return growth / cache.n_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    n_timed, n_large = (1_024, 8_192) if options.quick else (4_096, 65_536)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = make_data_set(folder / "large", n_large, n_words=5)
        memory = measure_memory(short, make_encoder(folder / "shallow", 256, N_LAYERS_SHALLOW), folder / "cache")
        long = make_data_set(folder / "shop", n_timed, n_words=MAX_LENGTH + 5)
        ratio = measure_time(long, make_encoder(folder / "deep", 384, N_LAYERS), folder, 3)
    print(f"hidden_states_memory ratio {memory:.3f} limit {MEMORY_LIMIT}")
    print(f"hidden_states_time ratio {ratio:.3f} limit {TIME_LIMIT}")
    return int(memory > MEMORY_LIMIT or ratio > TIME_LIMIT)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
