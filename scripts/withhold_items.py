"""A data set in which some items are sold for the first time in the test part: what is new in a shop.

    python scripts/withhold_items.py --data_path=dataset_atomic --dataset=films --output=dataset_atomic/films-cold

Of every tenth item, drawn by the seed, all interactions go but those that are the last of a user. So the split of
leave-one-out (`eval_args`, the default) has them in the test part alone; tables of results by popularity have them as
`cold`. Content is copied as it is.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_perpeft.convert.conversion import output_folder
from recbole_perpeft.core.errors import PerPEFTError

USER, ITEM, TIME = "user_id:token", "item_id:token", "timestamp:float"


def withheld(log: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The interactions that stay, in their order.

    Args:
        log: The columns of an `.inter` file as text.
        share: Share of the items, between 0 and 1.
        seed: Draws the items.

    Raises:
        PerPEFTError: A column is missing, or a time is no number.
    """
    missing = [name for name in (USER, ITEM, TIME) if name not in log]
    if missing:
        raise PerPEFTError(f"the log has no column {', '.join(missing)}; it has {', '.join(log.columns)}")
    items = np.sort(log[ITEM].unique())
    drawn = np.random.default_rng(seed).choice(items, round(share * len(items)), replace=False)
    try:
        in_time = log.assign(time=log[TIME].astype(float)).sort_values("time", kind="stable")
    except ValueError as error:
        raise PerPEFTError(f"column {TIME}: {error}") from error
    newest = in_time.groupby(USER, sort=False).tail(1).index
    return log[~log[ITEM].isin(drawn) | log.index.isin(newest)]


def write(source: Path, output: Path, share: float, seed: int) -> tuple[int, int]:
    """Write the data set.

    Returns:
        Interactions before and after.

    Raises:
        PerPEFTError: The source cannot be read, or the output exists.
    """
    file = source / f"{source.name}.inter"
    if output.exists():
        raise PerPEFTError(f"{output} exists already: delete it or choose another folder")
    if not file.is_file():
        raise PerPEFTError(f"{file} is missing: data_path and dataset name a folder of atomic files")
    log = pd.read_csv(file, sep="\t", dtype=str, quoting=3, keep_default_na=False)
    kept = withheld(log, share, seed)
    with output_folder(output, overwrite=False) as draft:
        kept.to_csv(draft / f"{output.name}.inter", sep="\t", index=False, quoting=3)
        for other in source.iterdir():
            if other.is_dir():
                shutil.copytree(other, draft / other.name)
            elif other != file:
                name = output.name + other.suffix if other.stem == source.name else other.name
                shutil.copyfile(other, draft / name)
    return len(log), len(kept)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data_path", type=Path, default=Path("dataset_atomic"), help="folder of data sets")
    parser.add_argument("--dataset", required=True, help="the data set's folder in it")
    parser.add_argument(
        "--output", type=Path, required=True, help="the folder to make; its name is the new data set's"
    )
    parser.add_argument("--share", type=float, default=0.1, help="share of the items, 0.1 by default")
    parser.add_argument("--seed", type=int, default=2026, help="draws the items, 2026 by default")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.share < 1:
        parser.error(f"--share is {chosen.share}: it must be above 0 and below 1")
    try:
        before, after = write(chosen.data_path / chosen.dataset, chosen.output.resolve(), chosen.share, chosen.seed)
    except (PerPEFTError, OSError, UnicodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{after:,} of {before:,} interactions are in {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
