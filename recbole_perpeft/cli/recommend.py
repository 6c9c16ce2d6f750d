"""`recbole-perpeft recommend --model_file=runs/<run> --users=U1,U2`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.core.errors import PerPEFTError


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "recommend",
        "Prints tab-separated top-k lists of a trained model, for its users and for histories of anybody else.",
        "--model_file=runs/<run>/best.pth --users=U1,U2 --k=20",
        '--model_file=runs/<run>/best.pth --history="ITEM1 ITEM2 ITEM3" --include_new_items',
    )
    flags.add_argument("--model_file", required=True, help="best.pth of a run, or its folder")
    flags.add_argument("--users", help="user tokens, separated by commas")
    flags.add_argument("--history", action="append", help="item tokens, oldest first, separated by blanks; repeatable")
    flags.add_argument("--k", type=int, default=10, help="length of a list (%(default)s)")
    flags.add_argument("--include_seen", action="store_true", help="keep items of the history")
    flags.add_argument("--include_new_items", action="store_true", help="also items without interactions")
    options = flags.parse(words)
    if not options.users and not options.history:
        raise PerPEFTError("nobody to recommend to: give --users or --history")
    return options


def run(options: argparse.Namespace) -> int:
    """Print the lists."""
    from recbole_perpeft.use.recommend import Recommender

    how = {"k": options.k, "exclude_seen": not options.include_seen, "include_new_items": options.include_new_items}
    recommender = Recommender.from_file(options.model_file)
    if options.users:
        recommender.for_users(options.users.split(","), **how).to_csv(sys.stdout, sep="\t", index=False)
    if options.history:
        histories = [history.split() for history in options.history]
        recommender.for_histories(histories, **how).to_csv(sys.stdout, sep="\t", index=False)
    return 0
