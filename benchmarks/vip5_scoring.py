"""Cost of scoring the whole catalogue with VIP5 over one encoder pass of the same prompts, in one run.

    python benchmarks/vip5_scoring.py [--quick] [--history=20] [--users=8]

Prompts have names of two tokens, two visual tokens an item and the wording of the package; weights are random, in the
sizes of T5-small (with `--quick` of a T5 of width 64). Scoring is everything after the encoder: from its states to a
log-probability of every item. Both sides alternate. The last line is the catalogue that is worse against its limit
(2 encoder passes for 1,200 items, 4 for 12,000); exit status 1 if it is above it.
"""

import argparse
import sys
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recbole_perpeft.models.vip5.names import random_ranks, token_names
from recbole_perpeft.models.vip5.network import NetworkSettings, VIP5Network
from recbole_perpeft.models.vip5.prompts import PromptSettings, PromptWriter, Sample, template_words
from recbole_perpeft.models.vip5.ranking import exact_scores
from recbole_perpeft.models.vip5.t5 import T5Backbone, TinyBackboneSettings, tiny_backbone, word_tokenizer
from recbole_perpeft.models.vip5.templates import read_templates
from recbole_perpeft.models.vip5.trie import ItemTrie
from recbole_perpeft.models.vip5.visual import VisualSettings, VisualTokens
from recbole_perpeft.nn.adapt.bottleneck import T5AdapterSettings

LIMITS = {1_200: 2.0, 12_000: 4.0}
N_USERS, N_FEATURES, N_VISUAL = 100, 512, 2


def prepared(n_items: int, quick: bool) -> tuple[VIP5Network, PromptWriter]:
    """Network and writer for a catalogue."""
    torch.manual_seed(0)
    words = template_words(read_templates())
    if quick:
        model, tokenizer = tiny_backbone(words, TinyBackboneSettings())
    else:
        model, tokenizer = T5ForConditionalGeneration(T5Config()), word_tokenizer(words)
    backbone = T5Backbone(model, tokenizer, T5AdapterSettings())
    items, users = (
        token_names("code", random_ranks([str(number) for number in range(n)], 0), tokenizer)
        for n in (n_items, N_USERS)
    )
    settings = VisualSettings(n_visual_tokens=N_VISUAL, image_features="random")
    features, has_image = torch.randn(n_items + 1, N_FEATURES), torch.ones(n_items + 1, dtype=torch.bool)
    visual = VisualTokens(features, has_image, backbone.width, settings)
    writer = PromptWriter(
        *(tokenizer, backbone.n_words, items, users),
        *(N_VISUAL, [], pd.DataFrame(), PromptSettings()),
    )
    trie = ItemTrie(items.names, items.n_tokens)
    return VIP5Network(backbone, visual, trie, None, writer.n_new, NetworkSettings()).eval(), writer


@torch.no_grad()
def ratio(n_items: int, arguments: argparse.Namespace) -> float:
    """Median time of scoring over that of encoding."""
    network, writer = prepared(n_items, arguments.quick)
    users = torch.arange(1, arguments.users + 1)
    history = torch.randint(1, n_items + 1, (arguments.users, arguments.history))
    prompt = writer.write(read_templates()["A-3"], Sample(users, users, history))
    times: list[tuple[float, float]] = []
    for _ in range(arguments.rounds + 1):
        began = perf_counter()
        encoded = network.encode(prompt)
        between = perf_counter()
        exact_scores(network, encoded)
        times.append((between - began, perf_counter() - between))
    encoding, scoring = (median(column) for column in zip(*times[1:], strict=True))
    print(
        f"{n_items:,} items, {prompt.tokens.shape[1]} tokens a prompt: encoding {1000 * encoding / len(users):.1f} ms "
        f"a user, scoring {1000 * scoring / len(users):.1f} ms"
    )
    return scoring / encoding


def main() -> int:
    """Prints both ratios; 1 if one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a T5 of width 64 instead of T5-small")
    parser.add_argument("--history", type=int, default=20, help="items of a history")
    parser.add_argument("--users", type=int, default=8, help="prompts at once")
    parser.add_argument("--rounds", type=int, default=7, help="measurements")
    arguments = parser.parse_args()
    ratios = {n_items: ratio(n_items, arguments) for n_items in LIMITS}
    worse = max(ratios, key=lambda n_items: ratios[n_items] / LIMITS[n_items])
    for n_items in [*(one for one in LIMITS if one != worse), worse]:
        print(f"vip5_scoring_{n_items} ratio {ratios[n_items]:.3f} limit {LIMITS[n_items]}")
    return int(ratios[worse] > LIMITS[worse])


if __name__ == "__main__":
    sys.exit(main())
