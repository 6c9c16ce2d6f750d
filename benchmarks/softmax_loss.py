"""Time and memory of cross-entropy over the whole catalogue, beside torch's plain form and a loop over positions.

    python benchmarks/softmax_loss.py [--quick] [--seed=...]

All three take the same user vectors, items and targets, go forward and backward, and must give the same loss and
gradients. Torch's form holds the scores of all positions with all items, several times over. Each side runs in a
process of its own; times are those of one processor, memory is what the process needs above its inputs. The last
line is `softmax_loss ratio <x> limit 1`, the worst of: our time over that of torch's form, four times our memory over
its memory, four times our time over that of the loop; exit status 1 above.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch
from dataset_build import memory
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.nn.losses.cross_entropy import shared_cross_entropy

LIMIT = 1.0
WIDTH = 64
SIZES = {"full": (64 * 50, 20_000), "quick": (64 * 20, 10_000)}  # positions and items


def ours(hidden: Tensor, items: Tensor, target: Tensor) -> Tensor:
    return shared_cross_entropy(hidden, items, items[target], items.new_zeros(len(items)), column=target)


def plain(hidden: Tensor, items: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ items.T, target)


def loop(hidden: Tensor, items: Tensor, target: Tensor) -> Tensor:
    terms = []
    for state, wanted in zip(hidden, target.tolist(), strict=True):
        scores = items @ state
        terms.append(scores.logsumexp(0) - scores[wanted])
    return torch.stack(terms).mean()


SIDES = {"ours": ours, "plain": plain, "loop": loop}


def measure(side: str, size: str, seed: int) -> dict[str, float]:
    """Seconds and memory of forward and backward in this process, and numbers that all sides must share."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    n_positions, n_items = SIZES[size]
    hidden = torch.randn(n_positions, WIDTH, generator=generator).requires_grad_()
    items = torch.randn(n_items, WIDTH, generator=generator).div_(WIDTH**0.5).requires_grad_()
    target = torch.randint(n_items, (n_positions,), generator=generator)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    times = []
    for _ in range(1 if side == "loop" else 3):
        hidden.grad = items.grad = None
        began = process_time()
        loss = SIDES[side](hidden, items, target)
        loss.backward()
        times.append(process_time() - began)
    assert hidden.grad is not None and items.grad is not None
    found = {"loss": loss.item(), "hidden": hidden.grad.norm().item(), "items": items.grad.norm().item()}
    return {"seconds": median(times), "memory": memory("VmHWM") - before} | found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer positions and items")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = "quick" if arguments.quick else "full"
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, size, arguments.seed)))
        return 0
    print("{:,} positions, {:,} items, width {}".format(*SIZES[size], WIDTH))
    results = {}
    for side in SIDES:
        output = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", side], check=True, stdout=-1)
        results[side] = json.loads(output.stdout.splitlines()[-1])
        print(f"{side:6} {results[side]['seconds']:8.3f} s  {results[side]['memory']:8.1f} MB")
    for name in ("loss", "hidden", "items"):
        values = torch.tensor([result[name] for result in results.values()])
        torch.testing.assert_close(values, values[:1].expand(3), atol=1e-4, rtol=1e-3)
    mine = results["ours"]
    ratio = max(
        mine["seconds"] / results["plain"]["seconds"],
        4 * mine["memory"] / results["plain"]["memory"],
        4 * mine["seconds"] / results["loop"]["seconds"],
    )
    print(f"softmax_loss ratio {ratio:.4f} limit {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
