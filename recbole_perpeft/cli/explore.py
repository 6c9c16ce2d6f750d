"""`recbole-perpeft explore --run=runs/<run>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags, changes_of
from recbole_perpeft.core.errors import PerPEFTError


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "explore",
        "Writes a page about the groups of a trained PerPEFT: who they are, what they buy, and where each group's "
        "encoder looks in photos and titles.",
        "--run=runs/<run>",
        "--run=runs/<run> --items=ITEM1,ITEM2 --output=groups.html",
    )
    flags.add_run()
    flags.add_argument("--output", type=Path, help="HTML file to write (explore.html in the folder of the run)")
    flags.add_argument(
        "--items", help="items shown side by side, separated by commas (those that groups contest most)"
    )
    flags.add_argument("--n_items", type=int, default=8, help="how many of these (%(default)s)")
    flags.add_argument("--no_progress", action="store_true", help="no progress bar")
    options = flags.parse(words)
    if options.n_items < 1:
        raise PerPEFTError(f"--n_items is {options.n_items}: show at least one item")
    return options


def run(options: argparse.Namespace) -> int:
    """Write the page and say where."""
    from recbole_perpeft.studies.explore.explore import explore

    folder = options.run if options.run.is_dir() else options.run.parent
    items = [item for item in (options.items or "").split(",") if item]
    output, shows = options.output or folder / "explore.html", not options.no_progress
    changes = changes_of(options) | {"show_progress": shows}
    page = explore(options.run, output, items, options.n_items, changes, shows)
    print(page)
    return 0
