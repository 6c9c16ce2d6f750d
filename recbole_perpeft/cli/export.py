"""`recbole-perpeft export --run=runs/<run> --output=adapters`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "export",
        "Writes each group's adapter of a trained PerPEFT or GlobalPEFT as a folder that the peft library opens, and\n"
        "the groups of users with their centroids as tables (Parquet).",
        "--run=runs/<run> --output=adapters",
    )
    flags.add_argument("--run", type=Path, required=True, help="folder of the run, or its best.pth")
    flags.add_argument("--output", type=Path, required=True, help="folder to make")
    return flags.parse(words)


def run(options: argparse.Namespace) -> int:
    """Export, and print the folders."""
    from recbole_perpeft.use.export import export

    print(*sorted(export(options.run, options.output).iterdir()), sep="\n")
    return 0
