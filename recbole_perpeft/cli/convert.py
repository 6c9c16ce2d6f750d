"""`recbole-perpeft convert <source> --input=... --output=dataset_atomic/<name>`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags
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
    PerPEFTSource,
    IISANSource,
    MicroLensSource,
    Amazon2023Source,
    VIP5Source,
    TableSource,
)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags of the source that the first word names."""
    by_name = {source.name: source for source in SOURCES}
    if not words or words[0].startswith("-"):
        _overview().parse(words or ["--help"])
        raise PerPEFTError(f"name a source first: {', '.join(by_name)} (see recbole-perpeft convert --help)")
    name, *rest = words
    if name not in by_name:
        raise PerPEFTError(f"there is no source {name!r}: there are {', '.join(by_name)}")
    source = by_name[name]
    flags = Flags(f"convert {name}", _first_line(source), source.example)
    source.add_arguments(flags)
    _add_common_arguments(flags, source.filters)
    options = flags.parse(rest)
    options.source = source
    return options


def _overview() -> Flags:
    sources = "\n".join(f"  {source.name:<12}{_first_line(source)}" for source in SOURCES)
    about = f"Converts a data set into RecBole's atomic files with titles and images.\n\nsources:\n{sources}"
    flags = Flags("convert", about, f"table {TableSource.example}")
    flags.usage = "recbole-perpeft convert <source> [--key=value ...]; <source> --help tells its flags"
    return flags


def _first_line(source: type[Source]) -> str:
    return (source.__doc__ or "").splitlines()[0]


def _add_common_arguments(one: argparse.ArgumentParser, filters: FilterSettings) -> None:
    one.add_argument("--output", type=Path, required=True, help="folder to make; its name is that of the data set")
    one.add_argument(
        "--repeats",
        choices=REPEATS,
        default=filters.repeats,
        help="repeated interactions: keep, drop those with equal times, or all but an item's first (%(default)s)",
    )
    for name, what in (
        ("k_core", "fewest interactions of a user and of an item, 0: no filter"),
        ("min_len", "fewest interactions of a user after that, 0: no filter"),
        ("keep_last", "latest interactions of a user that stay, 0: all"),
    ):
        one.add_argument(f"--{name}", type=int, default=getattr(filters, name), help=f"{what} (%(default)s)")
    one.add_argument("--max_side", type=int, help="make images smaller whose longer side has more pixels")
    one.add_argument("--unescape_titles", action="store_true", help="make HTML entities in texts characters")
    one.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    one.add_argument("--workers", type=int, help="processes for images; by default as many as pay")
    one.add_argument("--no_progress", action="store_true", help="show no progress bars")


def run(options: argparse.Namespace) -> int:
    """Convert, and print what came of it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    chosen = vars(options)
    source, output, show_progress = chosen.pop("source"), chosen.pop("output"), not chosen.pop("no_progress")
    settings = ConversionSettings(
        FilterSettings(**{name: chosen.pop(name) for name in ("repeats", "k_core", "min_len", "keep_last")}),
        **{name: chosen.pop(name) for name in ("max_side", "unescape_titles", "overwrite", "workers")},
        show_progress=show_progress,
    )
    print(summary(convert(source.from_arguments(chosen, show_progress), output, settings, chosen)))
    return 0
