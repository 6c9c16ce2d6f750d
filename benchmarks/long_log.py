"""What a long log costs: time and memory of the first start, which reads its text, and of the second, which maps it.

Random logs in random order, 100 interactions a user and an item, in processes that have imported everything already.
Prints the sizes of text and kept log, seconds, peak memory above that of the imports, what the process itself holds
(mapped pages apart) in bytes an interaction, and log-log slopes over three sizes. The last line is
`long_log slope <x> limit 1.05`, the steepest of the processor time of both starts, exit status 1 above.

With `--build` both starts also split the log and cut its rows.
"""

import argparse
import math
import multiprocessing
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa
from dataset_build import memory
from pyarrow import csv

LIMIT = 1.05
SIZES = (10**6, 10**7, 10**8)
QUICK = (10**5, 3 * 10**5, 10**6)
TINY = (2000, 4000)
PER_USER = 100
ROWS_AT_ONCE = 10**6
LEAST = 0.1  # MB and seconds below which nothing is measured


def write_log(folder: Path, n: int, seed: int) -> Path:
    """A log of n interactions in random order; every user has two at least."""
    rng, n_ids = np.random.default_rng(seed), n // PER_USER
    path = folder / "log" / "log.inter"
    path.parent.mkdir(parents=True)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with open(path, "wb") as file:
        file.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        for start in range(0, n, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, n - start)
            users = rng.integers(n_ids, size=size)
            known = np.arange(start, start + size) // 2 < n_ids
            users[known] = np.arange(start, start + size)[known] // 2
            items = (rng.random(size) ** 2 * n_ids).astype(np.int64)
            times = 1_500_000_000 + rng.integers(10**8, size=size)
            csv.write_csv(pa.table({"user": users, "item": items, "time": times}), file, options)
    return path


def start(folder: Path, builds: bool, results) -> None:
    """Make the data set in this process, and say what it took."""
    from recbole_perpeft.runs.build import create_dataset
    from recbole_perpeft.runs.config import Config

    kept = {"keep_log": "always", "cache_folder": str(folder / "cache"), "data_path": str(folder)}
    config = Config(model="GlobalPEFT", dataset="log", config_dict=kept)
    before, own = memory("VmRSS"), memory("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    seconds, processor = perf_counter(), process_time()
    dataset = create_dataset(config)
    taken = {"seconds": perf_counter() - seconds}
    parts = dataset.build() if builds else []
    taken |= {"whole": perf_counter() - seconds, "processor": process_time() - processor}
    results.put(taken | {"peak": memory("VmHWM") - before, "own": memory("RssAnon") - own, "parts": len(parts)})


def measure(n: int, builds: bool, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Both starts with one log, in a process each; prints a line for each."""
    text = write_log(folder, n, seed)
    context = multiprocessing.get_context("fork")
    measured = {}
    for name in ("first", "second"):
        results = context.SimpleQueue()
        process = context.Process(target=start, args=(folder, builds, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"the {name} start failed")
        found = measured[name] = results.get()
        print(
            f"{n:>11,} {name:6} {found['seconds']:8.1f} s"
            + (f", with the parts {found['whole']:8.1f} s" if builds else "")
            + f" {found['processor']:8.1f} s of a processor   peak {found['peak']:+7.0f} MB   "
            f"own memory {found['own'] * 2**20 / n:5.1f} bytes an interaction",
            flush=True,
        )
    n_bytes = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    print(f"{n:>11,} text {text.stat().st_size / n:.1f} bytes an interaction, kept log {n_bytes / n:.1f}", flush=True)
    return measured


def slope(sizes, values) -> float:
    """Log-log slope by least squares; 0 of a single size."""
    if len(sizes) < 2:
        return 0.0
    logs = [math.log(max(LEAST, value)) for value in values]
    return float(np.polyfit(np.log(sizes), logs, 1)[0])


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to a million interactions instead of 100 million")
    parser.add_argument("--tiny", action="store_true", help="some thousand, to see whether it runs: nothing is judged")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of interactions; slopes are of two or more")
    parser.add_argument("--build", action="store_true", help="both starts split the log and cut its rows")
    parser.add_argument("--folder", help="where the logs are written for a while; 5 GB with 100 million interactions")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args(given)
    import recbole_perpeft.runs.build  # noqa: F401 - before the processes are measured

    sizes = arguments.sizes or (TINY if arguments.tiny else QUICK if arguments.quick else SIZES)
    found = []
    for n in sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found.append(measure(n, arguments.build, Path(folder), arguments.seed))
    slopes = {
        (name, what): slope(sizes, [each[name][what] for each in found])
        for name in ("first", "second")
        for what in ("processor", "peak")
    }
    for (name, what), value in slopes.items():
        print(f"slope of {what} of the {name} start {value:.2f}")
    worst = max(value for (_, what), value in slopes.items() if what == "processor")
    print(f"long_log slope {worst:.4f} limit {LIMIT}")
    return int(worst > LIMIT and not arguments.tiny)


if __name__ == "__main__":
    sys.exit(main())
