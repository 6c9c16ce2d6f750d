"""`recbole-perpeft convert <source> --input=... --output=dataset_atomic/<name>`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.convert.conversion import ConversionSettings, convert, summary
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.source import Source
from recbole_perpeft.convert.sources import SOURCES
from recbole_perpeft.convert.sources.table import TableSource
from recbole_perpeft.core.errors import PerPEFTError

_OPTIONS = [each for each in ConversionSettings.declared() if each.name not in ("filters", "show_progress")]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags of the source that the first word names."""
    if not words or words[0].startswith("-"):
        _overview().parse(words or ["--help"])
        raise PerPEFTError(f"name a source first: {', '.join(SOURCES.names())} (see recbole-perpeft convert --help)")
    name, *rest = words
    source = SOURCES.get(name)
    flags = Flags(f"convert {name}", _first_line(source), source.example)
    source.add_arguments(flags)
    flags.add_argument("--output", type=Path, required=True, help="folder to make; its name is that of the data set")
    flags.declare(*FilterSettings.declared(), **vars(source.filters))
    flags.declare(*_OPTIONS)
    flags.add_argument("--no_progress", action="store_true", help="show no progress bars")
    options = flags.parse(rest)
    options.source = source
    return options


def _overview() -> Flags:
    sources = "\n".join(f"  {name:<12}{_first_line(SOURCES.get(name))}" for name in SOURCES.names())
    about = f"Converts a data set into RecBole's atomic files with titles and images.\n\nsources:\n{sources}"
    flags = Flags("convert", about, f"table {TableSource.example}")
    flags.usage = "recbole-perpeft convert <source> [--key=value ...]; <source> --help tells its flags"
    return flags


def _first_line(source: type[Source]) -> str:
    return (source.__doc__ or "").splitlines()[0]


def run(options: argparse.Namespace) -> int:
    """Convert, and print what came of it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    chosen = vars(options)
    source, output, show_progress = chosen.pop("source"), chosen.pop("output"), not chosen.pop("no_progress")
    settings = ConversionSettings(
        FilterSettings(**{declared.name: chosen.pop(declared.name) for declared in FilterSettings.declared()}),
        **{declared.name: chosen.pop(declared.name) for declared in _OPTIONS},
        show_progress=show_progress,
    )
    print(summary(convert(source.from_arguments(chosen, show_progress), output, settings, chosen)))
    return 0
