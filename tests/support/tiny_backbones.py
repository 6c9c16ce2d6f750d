"""Tiny encoders with random weights, and their inputs."""

import torch
from transformers import BertConfig, ViTConfig

from recbole_perpeft.nn.adapt.methods import PeftMethod
from recbole_perpeft.nn.adapt.tuning import HoulsbyAdapters, train_all, train_biases
from recbole_perpeft.pretrained.tower import Backbone

ADAPTATIONS = ("full", "adapter", "lora", "bitfit")
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
N_ITEMS, LENGTH, SIZE = 6, 7, 8


def method(adaptation, adapter_rank=64, lora_rank=8, lora_alpha=1):
    """A method of IISAN's baselines, as MoRec has them."""
    lora = {"r": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": 0.0, "bias": "lora_only"}
    methods = {"full": train_all, "bitfit": train_biases, "adapter": HoulsbyAdapters(adapter_rank)}
    return methods.get(adaptation) or PeftMethod("lora", lora)


def backbone(kind, seed=0):
    torch.manual_seed(seed)
    config = (
        BertConfig(**TINY, vocab_size=20, max_position_embeddings=LENGTH)
        if kind == "text"
        else ViTConfig(**TINY, image_size=SIZE, patch_size=4)
    )
    return Backbone.from_config(config, kind)


class Source:
    """Inputs of six items."""

    n_rows = N_ITEMS

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        lengths = torch.tensor([3, 7, 2, 5, 7, 4])
        self.inputs = {
            "pixel_values": torch.randint(0, 256, (N_ITEMS, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
            "input_ids": torch.randint(1, 20, (N_ITEMS, LENGTH), generator=generator),
            "attention_mask": (torch.arange(LENGTH) < lengths.unsqueeze(1)).long(),
        }

    def rows_of(self, item_tokens):
        return torch.tensor([-1 if token == "[PAD]" else int(token) for token in item_tokens])

    def text_lengths(self, rows):
        return self.inputs["attention_mask"][rows].sum(1)

    def batch(self, rows):
        return {name: values[rows] for name, values in self.inputs.items()}


def output(some_backbone):
    kind, inputs = some_backbone.kind, Source().inputs
    names = ("pixel_values",) if kind == "image" else ("input_ids", "attention_mask")
    with torch.no_grad():
        return encode(some_backbone, **{name: inputs[name] for name in names}).last


def encode(some_backbone, **inputs):
    """All hidden states, in their order, and the last one after the final norm."""
    encoded = some_backbone.encode(range(some_backbone.n_layers + 1), lambda state: state, **inputs)
    states = tuple(encoded.states[index] for index in range(some_backbone.n_layers + 1))
    return encoded._replace(states=states)
