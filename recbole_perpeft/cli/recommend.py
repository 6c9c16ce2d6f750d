"""`recbole-perpeft recommend --run=runs/<run> --all_users --output=lists.parquet`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_perpeft.cli.flags import Flags, changes_of
from recbole_perpeft.core.errors import PerPEFTError

if TYPE_CHECKING:
    from recbole_perpeft.use.lists import Work
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
        "--run=runs/<run> --all_users --workers=ray --ray_address=auto --output=/shared/lists.parquet",
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
    flags.add_argument(
        "--workers",
        choices=("local", "ray"),
        default="local",
        help="who computes: this process, or workers of Ray, each with the model (%(default)s)",
    )
    flags.add_argument("--nproc", type=int, help="with ray: workers; by default one a GPU, or one a machine")
    flags.add_argument("--ray_address", help="with ray: of a cluster, auto or host:port; by default on this machine")
    flags.add_argument("--no_progress", action="store_true", help="no bar")
    options = flags.parse(words)
    given = [name for name in ("all_users", "users", "histories", "history") if getattr(options, name)]
    if not given:
        raise PerPEFTError("nobody to recommend to: give --users, --all_users, --histories or --history")
    if options.min_score is not None and not math.isfinite(options.min_score):
        raise PerPEFTError(f"--min_score is {options.min_score}: give a number")
    if options.output and len(given) > 1:
        raise PerPEFTError(f"one file holds lists of one kind: give --{given[0]} or --{given[1]}, not both")
    for name in ("nproc", "ray_address"):
        if getattr(options, name) is not None and options.workers != "ray":
            raise PerPEFTError(f"--{name} tells how workers of Ray are found: give --workers=ray, or leave it out")
    if options.nproc is not None and options.nproc < 1:
        raise PerPEFTError(f"--nproc is {options.nproc}: give at least one worker")
    if options.ann and options.workers == "ray":
        raise PerPEFTError("--ann measures how well one process finds lists: leave out --ann or --workers=ray")
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
    everybody = list(_people(options, recommender, requests))
    with _workers(options, recommender, needs_log) as work:
        for people in everybody:
            if options.output is None:
                _print(recommender, people, wanted, not options.no_progress, work)
                continue
            rows = write_lists(recommender, people, wanted, options.output, not options.no_progress, work)
            print(f"{options.output}: {rows:,} rows for {len(people.names):,} users")
    if approximation is not None:
        print(approximation.report(), file=sys.stderr)
    return 0


def _workers(options: argparse.Namespace, recommender: Recommender, needs_log: bool) -> AbstractContextManager[Work]:
    """Who computes."""
    from recbole_perpeft.use.lists import here

    if options.workers == "local":
        return nullcontext(here)
    from recbole_perpeft.use.ray_workers import ray_workers

    config = recommender.dataset.config
    return ray_workers(options.run, config, needs_log, options.nproc, options.ray_address)


def _people(options: argparse.Namespace, recommender: Recommender, requests: Requests) -> Iterator[People]:
    if options.all_users:
        yield recommender.people_of_log(recommender.all_users())
    if options.users:
        yield requests.users(options.users)
    if options.histories:
        yield requests.histories(options.histories, not options.no_progress)
    if options.history:
        yield recommender.people_of_lists([history.split() for history in options.history])


def _print(recommender: Recommender, people: People, wanted: Wanted, show_progress: bool, work: Work) -> None:
    """A table with titles: aligned on a screen, with tabs for a program that reads it."""
    from tabulate import tabulate

    from recbole_perpeft.use.lists import compute, tables, titles

    is_long = len(people.names) > recommender.scorer.users_at_once
    lists = compute(recommender, people, wanted, show_progress and is_long, work)
    for number, table in enumerate(tables(recommender, people, lists)):
        found = titles(recommender, table["item_id"])
        table = table if found is None else table.assign(title=found)
        if sys.stdout.isatty():
            print(tabulate(table, headers="keys", showindex=False, disable_numparse=True))
        else:
            table.to_csv(sys.stdout, sep="\t", index=False, header=not number)
