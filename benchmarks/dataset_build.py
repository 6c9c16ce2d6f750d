"""Time of `SequenceDataset.build()` divided by that of RecBole's `SequentialDataset.build()` on the same log.

Each class runs in a process of its own, which loads the log first; only `build()` (sorting, cutting rows, splitting)
is timed, on a log of short histories and on one of long ones, which ours cuts into several rows that overlap. Prints
times and peak memories; the last line is `dataset_build ratio <x> limit 0.1`, the worse of both, exit status 1 above.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

LIMIT = 0.1
CLASSES = ("recbole", "ours")
# Interactions of a user, and items of a row.
LOGS = {"short": (10, 10), "long": (200, 50)}


def write_log(folder: Path, n_users: int, n_interactions: int, seed: int) -> None:
    """Random log in random order: every user has 2 interactions at least."""
    rng = np.random.default_rng(seed)
    users = rng.integers(n_users, size=n_interactions)
    users[: 2 * n_users] = np.repeat(np.arange(n_users), 2)
    items = np.minimum(rng.zipf(1.3, size=n_interactions), n_interactions // 20)
    times = rng.permutation(n_interactions)
    log = {"user_id:token": rng.permutation(users), "item_id:token": items, "timestamp:float": times}
    (folder / "log").mkdir()
    pd.DataFrame(log).to_csv(folder / "log" / "log.inter", sep="\t", index=False)


def measure(name: str, folder: str, width: int) -> dict[str, float]:
    """Seconds and memory (MB) of one build in this process."""
    from recbole.data.dataset import SequentialDataset

    from recbole_perpeft.data.dataset import SequenceDataset
    from recbole_perpeft.runs.config import Config

    settings = {"data_path": folder, "MAX_ITEM_LIST_LENGTH": width, "train_windows": "all", "train_overlap": 0.2}
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    dataset = {"recbole": SequentialDataset, "ours": SequenceDataset}[name](config)
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = perf_counter()
    parts = dataset.build()
    seconds = perf_counter() - start
    return {"seconds": seconds, "before": before, "peak": memory("VmHWM"), "rows": sum(map(len, parts))}


def memory(field: str) -> float:
    """A field of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def run_apart(name: str, folder: str, width: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name, "--folder", folder, "--width", str(width)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare(n_interactions: int, kind: str, seed: int) -> float:
    """Builds one log with both classes, and prints what it took."""
    length, width = LOGS[kind]
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), n_interactions // length, n_interactions, seed)
        results = {name: run_apart(name, folder, width) for name in CLASSES}
    print(f"{n_interactions:,} interactions of {n_interactions // length:,} users, {width} items a row")
    for name, result in results.items():
        print(
            f"{name:8} {result['seconds']:8.3f} s   peak memory {result['peak']:7.0f} MB "
            f"({result['peak'] - result['before']:+.0f} MB while building)   {result['rows']:,} rows"
        )
    return results["ours"]["seconds"] / results["recbole"]["seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a log of 100,000 instead of 1,000,000 interactions")
    parser.add_argument("--interactions", type=int, help="of a log of short histories alone")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--measure", choices=CLASSES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder, arguments.width)))
        return 0
    n_interactions = 100_000 if arguments.quick else 1_000_000
    sizes = {"short": arguments.interactions} if arguments.interactions else dict.fromkeys(LOGS, n_interactions)
    ratio = max(compare(n, kind, arguments.seed) for kind, n in sizes.items())
    print(f"dataset_build ratio {ratio:.4f} limit {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
