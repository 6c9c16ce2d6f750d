"""`recbole-perpeft serve --run=runs/<run>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from recbole_perpeft.cli.flags import Flags, changes_of
from recbole_perpeft.core.errors import PerPEFTError

PACKAGES = ("fastapi", "uvicorn")


def has_packages() -> bool:
    """Whether the extra `serve` is installed."""
    return all(map(find_spec, PACKAGES))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "serve",
        "Answers requests for lists over HTTP: POST /recommend, GET /items/<id>/similar, GET /groups, GET /health.\n"
        "What people had is in requests alone, not in the log.",
        "--run=runs/<run> --port=8000",
    )
    flags.add_run()
    flags.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    flags.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    options = flags.parse(words)
    if not 0 < options.port < 2**16:
        raise PerPEFTError(f"--port is {options.port}; it is a number from 1 to 65535")
    return options


def run(options: argparse.Namespace) -> int:
    """Serve until it is interrupted."""
    if not has_packages():
        raise PerPEFTError(f"serve needs {' and '.join(PACKAGES)}: pip install 'recbole-perpeft[serve]'")
    from recbole_perpeft.use.recommend import Recommender
    from recbole_perpeft.use.server import bound, serve
    from recbole_perpeft.use.service import Service

    with bound(options.host, options.port) as address:
        service = Service(Recommender.from_file(options.run, changes_of(options), needs_log=False))
        place = f"[{options.host}]" if ":" in options.host else options.host
        print(f"http://{place}:{options.port} answers for {options.run}; Ctrl-C ends it", flush=True)
        serve(service, address)
    return 0
