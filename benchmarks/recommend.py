"""Cost of the lists of a shop of 1,000,000 users and 1,000,000 items of 64 numbers, over a bare product with top-k.

    python benchmarks/recommend.py [--quick] [--users=2048] [--rounds=3]

Slices of the users are measured (with `--quick` against 100,000 items): everything from histories to the arrays that
become the file, on top of what all users and items take in memory. The bare side multiplies the same vectors chunk by
chunk and keeps the best, without histories to leave out. Both sides alternate; times are of the processor, as others
may use the machine. Lines: hours for all users by extrapolation, how far twice the users are from twice the time, peak
memory, and last the ratio; 1 if one is above its limit.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch

from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.runs.folder import peak_memory_mb
from recbole_perpeft.use.recommend import Lists, People, Recommender, Wanted
from recbole_perpeft.use.topk import ITEMS_AT_ONCE

LIMIT, LINEAR_LIMIT, MEMORY_LIMIT_MB = 1.3, 1.25, 4000
N_USERS, WIDTH, LENGTH, K = 1_000_000, 64, 20, 20


class Dataset:
    """What a recommender reads of a data set."""

    uid_field, iid_field = "user_id", "item_id"

    def __init__(self, n_items: int, n_users: int) -> None:
        self.field2id_token = {
            "user_id": np.arange(n_users + 1).astype(str),
            "item_id": np.arange(n_items + 1).astype(str),
        }


class Model:
    """Random item vectors; a user is the mean of the newest items."""

    max_seq_length = LENGTH
    device = torch.device("cpu")

    def __init__(self, n_items: int) -> None:
        self.vectors = torch.randn(n_items + 1, WIDTH)

    def eval(self) -> "Model":
        return self

    def catalogue(self, group: int | None, kept: bool = True) -> torch.Tensor:
        return self.vectors

    def user_vectors(self, item_seq: torch.Tensor, length: torch.Tensor, catalogue: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(item_seq, catalogue, mode="mean")


def recommender_of(n_items: int, n_users: int) -> Recommender:
    """With histories of users."""
    torch.manual_seed(0)
    items = np.random.default_rng(0).integers(1, n_items + 1, n_users * LENGTH)
    history = HistoryIndex(np.concatenate([[0], np.arange(n_users + 1) * LENGTH]), items)
    return Recommender(Model(n_items), Dataset(n_items, n_users), history)


def ours(recommender: Recommender, people: People, lists: Lists, n_users: int) -> float:
    """Seconds for some users."""
    began = process_time()
    plan = recommender.plan(people)[: n_users // recommender.scorer.users_at_once]
    for batch, part in zip(plan, recommender.lists(people, Wanted(K), plan), strict=True):
        lists.put(batch, part)
    return process_time() - began


@torch.no_grad()
def bare(vectors: torch.Tensor, n_users: int, users_at_once: int) -> float:
    """The same number of products, and nothing but the best of each chunk."""
    users = torch.randn(n_users, WIDTH)
    began = process_time()
    for of_users in users.split(users_at_once):
        values, items = torch.empty(len(of_users), 0), torch.empty(len(of_users), 0, dtype=torch.long)
        for start in range(0, len(vectors), ITEMS_AT_ONCE):
            best = (of_users @ vectors[start : start + ITEMS_AT_ONCE].T).topk(K, dim=1)
            values, places = torch.cat([values, best.values], dim=1).topk(K, dim=1)
            items = torch.cat([items, best.indices + start], dim=1).gather(1, places)
    return process_time() - began


def main() -> int:
    """Prints the ratios; 1 if one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 items instead of 1,000,000")
    parser.add_argument("--users", type=int, default=2048, help="users of a slice")
    parser.add_argument("--rounds", type=int, default=3, help="measurements")
    arguments = parser.parse_args()
    n_items = 100_000 if arguments.quick else 1_000_000
    recommender = recommender_of(n_items, N_USERS)
    people = recommender.people_of_log(recommender.all_users())
    at_once, vectors = recommender.scorer.users_at_once, recommender.model.vectors
    with tempfile.TemporaryDirectory() as folder:
        shapes = zip(Lists._fields, Lists.kinds(N_USERS, K), strict=True)
        lists = Lists(
            *(
                np.lib.format.open_memmap(Path(folder) / f"{name}.npy", "w+", kind, shape)
                for name, (shape, kind) in shapes
            )
        )
        times = [
            (
                ours(recommender, people, lists, arguments.users),
                bare(vectors[1:], arguments.users, at_once),
                ours(recommender, people, lists, arguments.users // 2),
            )
            for _ in range(arguments.rounds)
        ]
    whole, product, of_half = (median(column) for column in zip(*times, strict=True))
    memory = peak_memory_mb()
    linear = whole / (2 * of_half)
    linear = max(linear, 1 / linear)
    print(
        f"{arguments.users:,} users and {n_items:,} items: {whole:.1f} s, the bare product {product:.1f} s; "
        f"{N_USERS:,} users by extrapolation: {whole * N_USERS / arguments.users / 3600:.1f} processor hours"
    )
    print(f"recommend_linear ratio {linear:.3f} limit {LINEAR_LIMIT}")
    print(f"recommend_memory {memory:.0f} MB limit {MEMORY_LIMIT_MB}")
    print(f"recommend ratio {whole / product:.3f} limit {LIMIT}")
    return int(whole / product > LIMIT or linear > LINEAR_LIMIT or memory > MEMORY_LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
