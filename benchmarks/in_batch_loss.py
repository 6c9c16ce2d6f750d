"""Time of `in_batch_debiased_loss`, forward and backward at batch 512, over that of a plain Python loop.

    python benchmarks/in_batch_loss.py [--quick] [--seed=...]

The loop takes the score matrix row by row, one row a slot with a next item, and in a row asks of every slot of the
batch whether it is a candidate, as the formula is written. Both sides get the same inputs, must give the same loss and
gradient, and are timed on histories as long as those of a sparse log (three to eleven items, mostly few) and on full
ones; a small batch comes before. Times are those of one processor, so that other work on the machine hardly counts.
The last line is `in_batch_loss ratio <x> limit 0.05`, the worse of both; exit status 1 above.
"""

import argparse
import math
import sys
from statistics import median
from time import process_time

import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.nn.losses.in_batch import in_batch_debiased_loss, log_popularity

LIMIT = 0.05
BATCH_SIZE = 512
WIDTH = 11
HIDDEN_SIZE = 64
N_ITEMS = 20_000


def random_rows(batch_size: int, full: bool, generator: torch.Generator) -> Tensor:
    """Left-padded rows of popular and rare items, [batch_size, WIDTH]."""
    rows = (N_ITEMS * torch.rand(batch_size, WIDTH, generator=generator) ** 2).long() + 1
    if full:
        return rows
    # As in Scientific: mean length below 5 of 11 slots.
    length = (3 + torch.empty(batch_size, 1).exponential_(0.5, generator=generator)).long().clamp(max=WIDTH)
    return rows * (torch.arange(WIDTH) >= WIDTH - length)


def plain_loop(hidden: Tensor, rows: Tensor, items: Tensor, vectors: Tensor, log_p: Tensor) -> Tensor:
    """The formula, one row of the score matrix after the other."""
    flat = rows.flatten()
    columns = vectors[torch.searchsorted(items, flat)]
    correction = log_p[flat]
    ids = flat.tolist()
    terms = []
    for u, row in enumerate(rows.tolist()):
        for i in range(len(row) - 1):
            if row[i] == 0:
                continue
            target = u * len(row) + i + 1
            masked = [item == 0 or (item in row and column != target) for column, item in enumerate(ids)]
            scores = (columns @ hidden[u, i] - correction).masked_fill(torch.tensor(masked), -1e4)
            terms.append(functional.cross_entropy(scores, torch.tensor(target)))
    return torch.stack(terms).mean()


def seconds(loss, hidden: Tensor, vectors: Tensor, arguments: tuple, repeats: int) -> tuple[float, Tensor, Tensor]:
    """Median time of forward and backward, the loss and the gradient of the item vectors."""
    times = []
    for _ in range(repeats):
        hidden.grad = vectors.grad = None
        began = process_time()
        value = loss(hidden, *arguments[:2], vectors, *arguments[2:])
        value.backward()
        times.append(process_time() - began)
    assert vectors.grad is not None
    return median(times), value.detach(), vectors.grad


def compare(batch_size: int, full: bool, seed: int, repeats: int) -> float:
    """Times both sides on one batch, and prints them."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(batch_size, full, generator)
    items = rows.unique()
    hidden = torch.randn(batch_size, WIDTH - 1, HIDDEN_SIZE, generator=generator).div_(math.sqrt(HIDDEN_SIZE))
    vectors = torch.randn(len(items), HIDDEN_SIZE, generator=generator)
    hidden.requires_grad_(), vectors.requires_grad_()
    popularity = log_popularity(torch.randint(0, 50, (N_ITEMS + 1,), generator=generator))
    arguments = (rows, items, popularity)
    seconds(in_batch_debiased_loss, hidden, vectors, arguments, 1)  # the first call allocates
    ours, loss, gradient = seconds(in_batch_debiased_loss, hidden, vectors, arguments, repeats)
    theirs, expected, expected_gradient = seconds(plain_loop, hidden, vectors, arguments, 1)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-3)
    n_real, n_slots = int((rows != 0).sum()), rows.numel()
    print(
        f"batch {batch_size:4}, {n_real:5} of {n_slots:5} slots in use, {len(items):5} items: "
        f"ours {1000 * ours:8.1f} ms, loop {1000 * theirs:9.1f} ms, ratio {ours / theirs:.4f}"
    )
    return ours / theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five repeats of ours instead of twenty")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 5 if arguments.quick else 20
    compare(64, False, arguments.seed, repeats)
    ratio = max(compare(BATCH_SIZE, full, arguments.seed, repeats) for full in (False, True))
    print(f"in_batch_loss ratio {ratio:.4f} limit {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
