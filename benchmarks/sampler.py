"""Time of `GroupAwareSampler.sample` divided by that of RecBole's `RepeatableSampler` for as many negatives.

RecBole draws one negative for each of its train rows (prefixes of sequences) from the catalogue and avoids only the
target of the row; ours draws for all positions of a user from his group's pool and avoids all his train items. A bare
`torch.randint` of the same size, a regrouping and a whole train batch are timed too. The last line is
`sampler ratio <x> limit 0.5`, the worse of both distributions; exit status 1 above.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from recbole.sampler import RepeatableSampler

from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.data.loader import SequenceTrainDataLoader
from recbole_perpeft.data.sampler import GroupAwareSampler
from recbole_perpeft.runs.config import Config

LIMIT = 0.5
BATCH_SIZE = 256
LENGTH = 10
N_GROUPS = 8


class RowsOfPairs:
    """What RecBole's sampler reads of a data set: one row an interaction."""

    uid_field, iid_field = "user_id", "item_id"

    def __init__(self, dataset: SequenceDataset, history: HistoryIndex) -> None:
        self.user_num, self.item_num = dataset.user_num, dataset.item_num
        users, items = history.pairs()
        self.inter_feat = {"user_id": torch.from_numpy(users), "item_id": torch.from_numpy(items)}


def train_part(folder: Path, n_users: int, n_items: int, seed: int) -> tuple[Config, SequenceDataset]:
    """Train part of a random log of 12 interactions a user with popular and rare items."""
    rng = np.random.default_rng(seed)
    n_interactions = 12 * n_users
    log = {
        "user_id:token": np.repeat(np.arange(n_users), 12),
        "item_id:token": (n_items * rng.random(n_interactions) ** 2).astype(int),
        "timestamp:float": np.arange(n_interactions),
    }
    (folder / "log").mkdir()
    pd.DataFrame(log).to_csv(folder / "log" / "log.inter", sep="\t", index=False)
    settings = {"data_path": str(folder), "MAX_ITEM_LIST_LENGTH": LENGTH, "train_batch_size": BATCH_SIZE}
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    return config, SequenceDataset(config).build()[0]


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return 1000 * float(np.median(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 users instead of 50,000")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    n_users = 5_000 if arguments.quick else 50_000
    with tempfile.TemporaryDirectory() as folder:
        config, train = train_part(Path(folder), n_users, n_users // 2, arguments.seed)

    rng = np.random.default_rng(arguments.seed)
    users = torch.from_numpy(rng.choice(np.arange(1, n_users + 1), BATCH_SIZE, replace=False))
    rows = users.repeat_interleave(LENGTH).numpy()
    targets = rng.integers(1, train.item_num, size=len(rows))
    groups = rng.integers(N_GROUPS, size=(train.user_num,))
    history = train.phase_history
    assert history is not None
    print(f"{BATCH_SIZE} users x {LENGTH} negatives, {n_users:,} users, {train.item_num - 1:,} items")
    report("torch.randint", milliseconds(lambda: torch.randint(1, train.item_num, (BATCH_SIZE, LENGTH)), 200))
    ratios = []
    for distribution in ("uniform", "popularity"):
        recbole = RepeatableSampler(["train"], RowsOfPairs(train, history), distribution).set_phase("train")
        theirs = milliseconds(partial(recbole.sample_by_user_ids, rows, targets, 1), 30)
        report(f"RecBole, {distribution}", theirs)
        sampler = GroupAwareSampler(history, train.item_num, distribution)
        for pool, user_group in (("catalogue", None), ("groups", groups)):
            sampler.set_groups(user_group)
            ours = milliseconds(partial(sampler.sample, users, LENGTH), 200)
            report(f"ours, {distribution}, {pool}", ours)
        ratios.append(ours / theirs)
    loader = SequenceTrainDataLoader(config, train, sampler)
    report("set_groups", milliseconds(lambda: loader.set_groups(groups), 5))
    report("a train batch with negatives", milliseconds(lambda: list(loader), 3) / len(loader))
    print(f"sampler ratio {max(ratios):.4f} limit {LIMIT}")
    return int(max(ratios) > LIMIT)


def report(what: str, time: float) -> None:
    print(f"{what:32} {time:8.3f} ms")


if __name__ == "__main__":
    sys.exit(main())
