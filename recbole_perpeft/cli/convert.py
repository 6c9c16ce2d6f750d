"""The command line of the converters."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from recbole_perpeft.convert.conversion import ConversionSettings, convert, summary
from recbole_perpeft.convert.filters import REPEATS, FilterSettings
from recbole_perpeft.convert.source import Source
from recbole_perpeft.convert.sources.amazon2023 import Amazon2023Source
from recbole_perpeft.convert.sources.iisan import IISANSource
from recbole_perpeft.convert.sources.microlens import MicroLensSource
from recbole_perpeft.convert.sources.perpeft import PerPEFTSource
from recbole_perpeft.convert.sources.table import TableSource
from recbole_perpeft.convert.sources.vip5 import VIP5Source
from recbole_perpeft.core.errors import PerPEFTError

SOURCES: tuple[type[Source], ...] = (
    *(PerPEFTSource, IISANSource, MicroLensSource),
    *(Amazon2023Source, VIP5Source, TableSource),
)
PROGRAM = "python -m recbole_perpeft.convert"


def parser() -> argparse.ArgumentParser:
    """The flags of all sources."""
    main_parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Converts a data set into RecBole's atomic files with titles and images."
    )
    by_source = main_parser.add_subparsers(dest="source", required=True, metavar="source")
    for source in SOURCES:
        what = (source.__doc__ or "").splitlines()[0]
        one = by_source.add_parser(source.name, help=what, description=what)
        source.add_arguments(one)
        _add_common_arguments(one, source.filters)
    return main_parser


def _add_common_arguments(one: argparse.ArgumentParser, filters: FilterSettings) -> None:
    one.add_argument("--output", type=Path, required=True, help="folder to make; its name is that of the data set")
    one.add_argument(
        "--repeats",
        choices=REPEATS,
        default=filters.repeats,
        help="repeated interactions: keep, drop those with equal times, or all but an item's first (%(default)s)",
    )
    for name, what in (
        ("k-core", "fewest interactions of a user and of an item, 0: no filter"),
        ("min-len", "fewest interactions of a user after that, 0: no filter"),
        ("keep-last", "latest interactions of a user that stay, 0: all"),
    ):
        default = getattr(filters, name.replace("-", "_"))
        one.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    one.add_argument("--max-side", type=int, help="make images smaller whose longer side has more pixels")
    one.add_argument("--unescape-titles", action="store_true", help="make HTML entities in texts characters")
    one.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    one.add_argument("--workers", type=int, help="processes for images; by default as many as pay")
    one.add_argument("--no-progress", action="store_true", help="show no progress bars")


def main(arguments: list[str] | None = None) -> int:
    """Run one conversion and print its tables; the exit status is 2 for wrong input, 130 after an interruption."""
    chosen = vars(parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        report = _run(chosen)
    except PerPEFTError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start it again to go on with the images", file=sys.stderr)
        return 130
    print(summary(report))
    return 0


def _run(chosen: dict[str, Any]) -> dict[str, Any]:
    name = chosen.pop("source")
    source = next(source for source in SOURCES if source.name == name)
    output, show_progress = chosen.pop("output"), not chosen.pop("no_progress")
    settings = ConversionSettings(
        FilterSettings(**{name: chosen.pop(name) for name in ("repeats", "k_core", "min_len", "keep_last")}),
        **{name: chosen.pop(name) for name in ("max_side", "unescape_titles", "overwrite", "workers")},
        show_progress=show_progress,
    )
    return convert(source.from_arguments(chosen, show_progress), output, settings, chosen)


if __name__ == "__main__":
    sys.exit(main())
