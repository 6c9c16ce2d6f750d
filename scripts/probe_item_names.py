"""Does the order of VIP5's item names tell the held-out items? A probe that knows nothing but numbers.

It answers every test user with the item after the largest number of his history. Where numbers say nothing it hits
one item out of n. Orders are those of `id_order`, and the ids that RecBole gives items in the order of the file.

    python scripts/probe_item_names.py --dataset=aspects
    python scripts/probe_item_names.py --dataset=scientific --data_path=<folder> --n_visual_tokens=0
"""

import argparse
import sys
from typing import Any

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.dataset import history_of
from recbole_perpeft.models.vip5.names import ItemTokenSettings, item_ranks, successor_share
from recbole_perpeft.models.vip5.visual import VisualSettings, load_item_inputs
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset


def probe(config: Config, n_seeds: int) -> dict[str, float]:
    """Hit rate of the probe by order, the mean over seeds for `random`."""
    dataset = create_dataset(config)
    parts = dataset.build()
    tokens = dataset.field2id_token[dataset.iid_field]
    visual = settings_from(config, VisualSettings)
    inputs = load_item_inputs(config, tokens, visual, needs_titles=False)
    rows = parts[2].inter_feat
    held_out = (history_of(parts, "test"), rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy())

    def share(ranks: np.ndarray) -> float:
        return successor_share(np.concatenate([[-1], ranks]), *held_out)

    def ranks_of(order: Any, seed: int = 0) -> np.ndarray:
        return item_ranks(ItemTokenSettings(id_order=order, id_seed=seed), tokens[1:], inputs.vectors, parts[0])

    orders = ["content"] * bool(visual.n_visual_tokens) + ["collab", "appearance"]
    return (
        {
            "chance": 1 / (len(tokens) - 1),
            "random": float(np.mean([share(ranks_of("random", s)) for s in range(n_seeds)])),
        }
        | {order: share(ranks_of(order)) for order in orders}
        | {"ids in the order of the file": share(np.arange(len(tokens) - 1))}
    )


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="aspects", help="name of the data set")
    parser.add_argument("--data_path", help="folder of data sets")
    parser.add_argument("--n_visual_tokens", type=int, default=1, help="0 for a data set without images")
    parser.add_argument("--seeds", type=int, default=20, help="random orders")
    arguments = parser.parse_args()
    # Parts know the items of all users in order only where this order is asked for.
    settings = {"id_order": "appearance", "n_visual_tokens": arguments.n_visual_tokens}
    if arguments.data_path:
        settings["data_path"] = arguments.data_path
    try:
        shares = probe(Config("VIP5", arguments.dataset, None, settings), arguments.seeds)
    except PerPEFTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("order\thits in %\tover chance")
    for name, value in shares.items():
        print(f"{name}\t{100 * value:.3f}\t{value / shares['chance']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
