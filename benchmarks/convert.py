"""Time of converting a file of Amazon reviews divided by that of parsing its lines one by one with `json`.

The file is generated in the form of Amazon Reviews 2023, with popular items and mostly users of one review, as there.
The conversion does everything: parsing, checks, 5-core, time order, titles from metadata, atomic files, hashes.
Reviews a second and a core, and the peak of memory, are of a process of its own. The last line is
`convert ratio <x> limit 2.5`; exit status 1 above, or with fewer than 20,000 reviews a second and a core.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from recbole_perpeft.convert.conversion import ConversionSettings, convert
from recbole_perpeft.convert.sources.amazon2023 import Amazon2023Source

LIMIT = 2.5
LEAST_A_SECOND = 20_000
MEAN_TEXT = 260  # characters; with the other fields a line has about 480 bytes, as most categories have
CHUNK = 100_000


def write_reviews(path: Path, n_reviews: int, seed: int) -> None:
    """A file of reviews; a third of the users wrote most of them."""
    rng = np.random.default_rng(seed)
    n_items = max(100, n_reviews // 60)
    words = "good great fits well works as described love it would buy again returned broke cheap nice \\u2014".split()
    filler = " ".join(rng.choice(words, size=4 * MEAN_TEXT))
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, n_reviews, CHUNK):
            n = min(CHUNK, n_reviews - start)
            once = rng.random(n) < 0.4
            users = np.where(once, start + np.arange(n) + n_reviews, rng.integers(max(1, n_reviews // 14), size=n))
            items = (n_items * rng.random(n) ** 3).astype(int)
            times = rng.integers(1_300_000_000_000, 1_690_000_000_000, size=n)
            lengths = np.minimum(rng.exponential(MEAN_TEXT, size=n), 4 * MEAN_TEXT).astype(int)
            file.writelines(
                f'{{"rating": {1 + user % 5}.0, "title": "Five Stars", "images": [], '
                f'"text": "{filler[:length].rpartition(" ")[0]}", '
                f'"asin": "B{item:09d}", "parent_asin": "B{item:09d}", "user_id": "AG{user:026X}", '
                f'"timestamp": {time}, "helpful_vote": 0, "verified_purchase": true}}\n'
                for user, item, time, length in zip(
                    users.tolist(), items.tolist(), times.tolist(), lengths.tolist(), strict=True
                )
            )
    with open(meta_of(path), "w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"main_category": "Toys", "title": f"Toy {item}", "parent_asin": f"B{item:09d}", "images": []})
            + "\n"
            for item in range(n_items)
        )


def meta_of(path: Path) -> Path:
    return path.with_name("meta.jsonl")


def parse_line_by_line(path: Path) -> list[tuple]:
    """What a plain loop over the lines does, without any check."""
    with open(path, encoding="utf-8") as file:
        rows = map(json.loads, file)
        return [(row["user_id"], row["parent_asin"], row["timestamp"], row["rating"]) for row in rows]


def convert_in_this_process(path: Path, folder: Path) -> dict[str, float]:
    """Convert, and what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = perf_counter(), process_time()
    source = Amazon2023Source([path], [meta_of(path)])
    report = convert(source, folder, ConversionSettings(source.filters, overwrite=True, show_progress=False))
    return {
        "seconds": perf_counter() - start,
        "cpu_seconds": process_time() - start_cpu,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "mebibytes_before": before / 1024,
        "reviews": report["counts"][0]["interactions"],
        "kept": report["counts"][-1]["interactions"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200,000 reviews instead of 2,000,000")
    parser.add_argument("--reviews", type=int, help="another number of reviews")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--convert", nargs=2, type=Path, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        print(json.dumps(convert_in_this_process(*arguments.convert)))
        return 0
    n_reviews = arguments.reviews or (200_000 if arguments.quick else 2_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reviews.jsonl"
        write_reviews(path, n_reviews, arguments.seed)
        gigabytes = path.stat().st_size / 1e9
        command = [sys.executable, __file__, "--convert", str(path), str(Path(folder) / "set")]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        n_parsed = min(n_reviews, 200_000)
        first = Path(folder) / "first.jsonl"
        with open(path, encoding="utf-8") as file, open(first, "w", encoding="utf-8") as part:
            part.writelines(line for line, _ in zip(file, range(n_parsed), strict=False))
        start = process_time()
        parse_line_by_line(first)
        plain = (process_time() - start) / n_parsed
    ours = run["cpu_seconds"] / n_reviews
    print(f"{n_reviews:,} reviews, {gigabytes:.2f} GB; {run['kept']:,.0f} are left")
    print(f"one core: {1 / ours:,.0f} reviews a second; json line by line: {1 / plain:,.0f}")
    print(f"elapsed: {n_reviews / run['seconds']:,.0f} reviews a second")
    print(f"peak of memory: {run['mebibytes']:,.0f} MiB, of which {run['mebibytes_before']:,.0f} for the imports")
    print(f"convert ratio {ours / plain:.4f} limit {LIMIT}")
    return int(ours > LIMIT * plain or 1 / ours < LEAST_A_SECOND)


if __name__ == "__main__":
    sys.exit(main())
