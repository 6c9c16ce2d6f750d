"""Seconds of a training step at 10,000 to 1,000,000 items, with a dense and with a sparse table of id vectors.

    python benchmarks/sparse_ids.py [--quick] [--loss_type=bce]

GlobalPEFT on ids alone (peft_type: ids), whose step is that of stored content without the content; every user has 8
items, every item one user. Printed is the median of a step with the loading of its batch, the seconds without the
loading, and the slope of log seconds over log items: 1 grows with the items, 0 does not grow. The last line is
`sparse_ids slope <x> limit 0.2`; exit status 1 above. --quick: 1,000, 10,000 and 100,000 items.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer

SIZES = (10_000, 100_000, 1_000_000)
ITEMS_A_USER = 8
LIMIT = 0.2
N_STEPS = 40


def write_log(folder: Path, n_items: int) -> None:
    """A log in which each item has one user, and a title for each item."""
    items = np.random.default_rng(0).permutation(n_items)
    (folder / "log").mkdir()
    with (folder / "log" / "log.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"u{place // ITEMS_A_USER}\ti{item}\t{place}\n" for place, item in enumerate(items))
    with (folder / "log" / "log.item").open("w") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        file.writelines(f"i{item}\ttitle {item}\n" for item in range(n_items))


def seconds(folder: Path, n_items: int, settings: dict) -> tuple[float, float]:
    """Median seconds of a step with the loading of its batch, and without."""
    config = Config(model="GlobalPEFT", dataset="log", config_dict=settings)
    train_data, *_ = data_preparation(config, create_dataset(config))
    model = config.model_class(config, train_data.dataset)
    trainer = get_trainer(config)(config, model)
    model.train()
    whole, bare, batches = [], [], iter(train_data)
    for _ in range(min(N_STEPS, len(train_data))):
        began = perf_counter()
        batch = next(batches)
        loaded = perf_counter()
        trainer._train_step([batch], model.calculate_loss)
        ended = perf_counter()
        whole.append(ended - began)
        bare.append(ended - loaded)
    return median(whole[1:]), median(bare[1:])


def main() -> int:
    """Prints seconds and slopes; 1 if the sparse one is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the items")
    parser.add_argument("--loss_type", default="bce")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [size // 10 for size in SIZES] if arguments.quick else list(SIZES)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for n_items in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_log(folder, n_items)
            for sparse, times in found.items():
                settings = {
                    "data_path": name,
                    "cache_folder": f"{name}/cache",
                    "checkpoint_dir": name,
                    "show_progress": False,
                    "use_gpu": False,
                    "trackers": None,
                    "peft_type": "ids",
                    "id_embedding_reg": 0.0,
                    "sparse_ids": sparse,
                    "loss_type": arguments.loss_type,
                }
                times.append(seconds(folder, n_items, settings))
                print(f"{n_items:>9,} items, {'sparse' if sparse else 'dense '}", end=": ")
                print("a step {:.4f} s, without loading {:.4f} s".format(*times[-1]), flush=True)
    slopes = {
        sparse: np.polyfit(np.log(sizes), np.log([whole for whole, _ in times]), 1)[0]
        for sparse, times in found.items()
    }
    print(f"dense slope {slopes[False]:.2f}")
    print(f"sparse_ids slope {slopes[True]:.2f} limit {LIMIT}")
    return int(slopes[True] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
