"""Grouping at 10,000, 100,000 and 1,000,000 users and items: seconds of k-means and of likelihoods, and their error.

    python benchmarks/regroup.py [--quick]

* Likelihoods: 8 groups, vectors of 32, a SASRec user encoder, a row of 10 slots with 8 targets a user. Measured is a
  slice of the users under one group; printed are the seconds of all users and groups, taken to be as many times more.
* k-means: of all users, `kmeans_groups` as a training calls it.
* The error is that of drawn candidates against the whole catalogue: what they change of a user's log-likelihoods by
  group beyond what they change of all alike, over how much these differ; and how many of the users would go to another
  group. Scores have a deviation of 2, and vectors of groups differ by a tenth of their length.

The last line is `regroup slope <x> limit 1.05`: of log seconds over log users, of likelihoods by 1,000 candidates;
exit status 1 above. Seconds are those of one processor. --quick: 1,000, 10,000 and 100,000.
"""

import argparse
import sys
from time import process_time

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_perpeft.models.perpeft.grouping import kmeans_groups, likelihood_candidates, sequence_log_likelihood
from recbole_perpeft.nn.users.sasrec import SASRecUserEncoder, UserEncoderSettings

SIZES = (10_000, 100_000, 1_000_000)
N_GROUPS, WIDTH, SLOTS, TARGETS = 8, 32, 10, 8
DRAWN = 1_000
LIMIT = 1.05


class Model:
    """What likelihoods need of a model with groups.

    Args:
        n_items: The pad included.
        n_groups: Groups.
    """

    ITEM_SEQ, ITEM_SEQ_LEN, POS_ITEM_SEQ, max_seq_length = "item_id_list", "item_length", "pos_item_id_list", SLOTS

    def __init__(self, n_items: int, n_groups: int) -> None:
        torch.manual_seed(0)
        self.n_items = n_items
        shared = torch.randn(n_items, WIDTH)
        self._of_groups = [2 / WIDTH**0.5 * (shared + 0.1 * torch.randn_like(shared)) for _ in range(n_groups)]
        settings = UserEncoderSettings(hidden_size=WIDTH, n_heads=4)
        self.user_encoder = SASRecUserEncoder(settings, SLOTS).eval()

    def catalogue(self, group: int) -> torch.Tensor:
        """Vectors of items for a group."""
        return self._of_groups[group]

    def rows(self, n: int) -> Interaction:
        """Rows of users."""
        items = torch.zeros(n, SLOTS + 1, dtype=torch.int64)
        items[:, : TARGETS + 1] = torch.randint(1, self.n_items, (n, TARGETS + 1))
        inputs, targets = items[:, :-1].clone(), items[:, 1:]
        inputs[:, TARGETS] = 0
        columns = {"item_id_list": inputs, "pos_item_id_list": targets, "item_length": torch.full((n,), TARGETS)}
        return Interaction(columns)


def seconds_of_likelihoods(model: Model, n_users: int, n_slice: int, n_drawn: int) -> float:
    """Seconds of all users under all groups, from a slice of the users under one group."""
    drawn = likelihood_candidates(model.n_items, n_drawn, (0,))
    rows = model.rows(n_slice)
    sequence_log_likelihood(model, rows[:2], 0, candidates=drawn)
    began = process_time()
    sequence_log_likelihood(model, rows, 0, candidates=drawn)
    return (process_time() - began) * N_GROUPS * n_users / n_slice


def print_errors(n_items: int, n_users: int) -> None:
    """Errors of several numbers of candidates."""
    model = Model(n_items, N_GROUPS)
    rows = model.rows(n_users)

    def by_group(n_drawn: int) -> torch.Tensor:
        drawn = likelihood_candidates(n_items, n_drawn, (1,))
        found = [sequence_log_likelihood(model, rows, group, candidates=drawn) for group in range(N_GROUPS)]
        return torch.stack(found, 1)

    whole = by_group(0)
    differences = (whole - whole.mean(1, keepdim=True)).std()
    for n_drawn in (100, 300, 1_000, 3_000):
        error = by_group(n_drawn) - whole
        beyond = (error - error.mean(1, keepdim=True)).std()
        moved = ((whole + error).argmax(1) != whole.argmax(1)).float().mean()
        print(
            f"{n_drawn:>6,} of {n_items:,} items: a user's log-likelihood is {error.mean():+.3f} off; between groups "
            f"{beyond:.3f}, where they differ by {differences:.3f}; another group for {moved:.1%} of {n_users} users"
        )


def main() -> int:
    """Prints seconds, errors and the slope; 1 if it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the users and items")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [size // 10 for size in SIZES] if arguments.quick else list(SIZES)
    by_drawn = []
    for size in sizes:
        model = Model(size + 1, 1)
        by_drawn.append(seconds_of_likelihoods(model, size, 1_000, DRAWN))
        whole = seconds_of_likelihoods(model, size, max(4, min(512, 4_000_000 // size)), 0)
        vectors = np.random.default_rng(0).normal(size=(size, WIDTH)).astype(np.float32)
        began = process_time()
        kmeans_groups(vectors, N_GROUPS, 16, seed=0)
        print(
            f"{size:>9,} users and items: likelihoods by all items {whole:,.0f} s, "
            f"by {DRAWN:,} {by_drawn[-1]:,.1f} s; k-means {process_time() - began:,.1f} s",
            flush=True,
        )
    print_errors(sizes[1] + 1, 64 if arguments.quick else 256)
    slope = np.polyfit(np.log(sizes), np.log(by_drawn), 1)[0]
    print(f"regroup slope {slope:.2f} limit {LIMIT}")
    return int(slope > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
