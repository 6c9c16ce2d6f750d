"""A tiny T5 with random weights."""

import torch

from recbole_perpeft.models.vip5.t5 import T5Backbone, TinyBackboneSettings, tiny_backbone
from recbole_perpeft.nn.adapt.bottleneck import T5AdapterSettings

TINY = TinyBackboneSettings(tiny_width=32, tiny_inner_width=48, tiny_heads=2, tiny_layers=2)
TEXTS = ["here is the history of", "recommend the next item :", "a red mug , a blue lamp", "yes no"]


def make_backbone(seed=0, texts=TEXTS, adapters=None, **options):
    """A T5 of width 32; adapters have an effect unless settings are given."""
    torch.manual_seed(seed)
    model, tokenizer = tiny_backbone(texts, TINY)
    adapters = adapters or T5AdapterSettings(adapter_init="uniform")
    return T5Backbone(model, tokenizer, adapters, **options).eval()
