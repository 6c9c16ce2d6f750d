"""`recbole-perpeft recommend --run=runs/<run> --all_users --output=lists.parquet`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_perpeft.cli.flags import Flags, changes_of
from recbole_perpeft.core.errors import PerPEFTError

if TYPE_CHECKING:
    from recbole_perpeft.use.recommend import People, Recommender, Wanted
    from recbole_perpeft.use.requests import Requests


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "recommend",
        "Top-k lists of a trained model of any kind, for its users and for histories of anybody else: as a file, or\n"
        "as a table on the screen. Files of ids are tables (csv, tsv, jsonl, parquet) with user_id or item_id.",
        "--run=runs/<run> --users=U1,U2 --k=20",
        "--run=runs/<run> --all_users --candidates=stock.csv --output=lists.parquet",
        "--run=runs/<run> --histories=visitors.jsonl --output=lists.csv",
        '--run=runs/<run> --history="ITEM1 ITEM2 ITEM3" --include_new_items',
    )
    flags.add_run("--model_file")
    flags.add_argument("--all_users", action="store_true", help="everybody in the log")
    flags.add_argument("--users", help="user ids, separated by commas, or a table of them")
    flags.add_argument("--histories", type=Path, help="table with user_id, item_id and timestamp, of anybody")
    flags.add_argument("--history", action="append", help="item ids, oldest first, separated by blanks; repeatable")
    flags.add_argument("--output", type=Path, help="file to write: .parquet, .csv, .tsv or .jsonl")
    flags.add_argument("--k", type=int, default=10, help="length of a list (%(default)s)")
    flags.add_argument("--min_score", type=float, help="leave out lower scores")
    flags.add_argument("--candidates", type=Path, help="table of the items that may be recommended, such as the stock")
    flags.add_argument("--exclude", type=Path, help="table of items that may not")
    flags.add_argument("--include_seen", action="store_true", help="keep items of the history")
    flags.add_argument("--include_new_items", action="store_true", help="also items without interactions")
    flags.add_argument("--skip_unknown", action="store_true", help="leave out rows with items that are not known")
    flags.add_argument("--ann", choices=("usearch",), help="find lists by approximate search, and tell how well")
    flags.add_argument("--no_progress", action="store_true", help="no bar")
    options = flags.parse(words)
    given = [name for name in ("all_users", "users", "histories", "history") if getattr(options, name)]
    if not given:
        raise PerPEFTError("nobody to recommend to: give --users, --all_users, --histories or --history")
    if options.min_score is not None and not math.isfinite(options.min_score):
        raise PerPEFTError(f"--min_score is {options.min_score}: give a number")
    if options.output and len(given) > 1:
        raise PerPEFTError(f"one file holds lists of one kind: give --{given[0]} or --{given[1]}, not both")
    return options


def run(options: argparse.Namespace) -> int:
    """Write the lists, or print them."""
    from recbole_perpeft.use.lists import check_format, write_lists
    from recbole_perpeft.use.recommend import Recommender, Wanted
    from recbole_perpeft.use.requests import Requests

    if options.output:
        check_format(options.output)
    needs_log = bool(options.users or options.all_users)
    recommender = Recommender.from_file(options.run, changes_of(options), needs_log)
    approximation = recommender.search_approximately() if options.ann else None
    requests = Requests(recommender, options.skip_unknown)
    wanted = Wanted(
        options.k,
        not options.include_seen,
        options.include_new_items,
        requests.items(options.candidates) if options.candidates else None,
        requests.items(options.exclude) if options.exclude else (),
        options.min_score,
    )
    for people in _people(options, recommender, requests):
        if options.output is None:
            _print(recommender, people, wanted, not options.no_progress)
            continue
        rows = write_lists(recommender, people, wanted, options.output, not options.no_progress)
        print(f"{options.output}: {rows:,} rows for {len(people.names):,} users")
    if approximation is not None:
        print(approximation.report(), file=sys.stderr)
    return 0


def _people(options: argparse.Namespace, recommender: Recommender, requests: Requests) -> Iterator[People]:
    if options.all_users:
        yield recommender.people_of_log(recommender.all_users())
    if options.users:
        yield requests.users(options.users)
    if options.histories:
        yield requests.histories(options.histories, not options.no_progress)
    if options.history:
        yield recommender.people_of_lists([history.split() for history in options.history])


def _print(recommender: Recommender, people: People, wanted: Wanted, show_progress: bool) -> None:
    """A table with titles: aligned on a screen, with tabs for a program that reads it."""
    from tabulate import tabulate

    from recbole_perpeft.use.lists import compute, tables, titles

    lists = compute(
        recommender, people, wanted, show_progress and len(people.names) > recommender.scorer.users_at_once
    )
    for number, table in enumerate(tables(recommender, people, lists)):
        found = titles(recommender, table["item_id"])
        table = table if found is None else table.assign(title=found)
        if sys.stdout.isatty():
            print(tabulate(table, headers="keys", showindex=False, disable_numparse=True))
        else:
            table.to_csv(sys.stdout, sep="\t", index=False, header=not number)
