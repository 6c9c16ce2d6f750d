"""`recbole-perpeft aspects --output=dataset_atomic/aspects`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.data.aspects.catalogue import AspectsSettings, make_aspects


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags: those of the settings, and where to."""
    flags = Flags(
        "aspects",
        "Makes the data set aspects: drawn products, and users in hidden interest groups.",
        "--output=dataset_atomic/big --name=big --n_items=20000 --n_users=100000",
    )
    flags.add_argument("--output", type=Path, required=True, help="folder to make")
    flags.add_argument("--name", default="aspects", help="name of the data set, the stem of its files (%(default)s)")
    flags.declare(*AspectsSettings.declared())
    return flags.parse(words)


def run(options: argparse.Namespace) -> int:
    """Make the data set and print its folder."""
    settings = AspectsSettings(**{each.name: getattr(options, each.name) for each in AspectsSettings.declared()})
    print(make_aspects(options.output, settings, name=options.name))
    return 0
