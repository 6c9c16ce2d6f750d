"""`recbole-perpeft export --run=runs/<run> --output=model`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.core.errors import PerPEFTError


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "export",
        "Writes a trained PerPEFT or GlobalPEFT as a folder that needs none of this package: each group's adapter as\n"
        "the peft library opens it, item vectors, user encoder, groups of users, and a model card that loads them.",
        "--run=runs/<run> --output=model",
        "--run=runs/<run> --output=model --license=mit --push_to_hub=<owner>/<name>",
    )
    flags.add_run()
    flags.add_argument("--output", type=Path, required=True, help="folder to make")
    flags.add_argument(
        "--onnx", action="store_true", default=None, help="insist on ONNX, which is written if its packages are there"
    )
    flags.add_argument("--license", default="unknown", help="what the model card says of it (%(default)s)")
    flags.add_argument("--push_to_hub", help="upload it, without the ids of users: <owner>/<name>")
    flags.add_argument("--public", action="store_true", help="let everybody see a new repository of the hub")
    options = flags.parse(words)
    if options.public and not options.push_to_hub:
        raise PerPEFTError("--public says who may see what --push_to_hub uploads: give both, or neither")
    return options


def run(options: argparse.Namespace) -> int:
    """Export, and print what is in the folder."""
    from recbole_perpeft.use.export import export
    from recbole_perpeft.use.hub import push

    folder = export(options.run, options.output, options.onnx, options.license, options.data_path)
    print(*sorted(folder.iterdir()), sep="\n")
    if options.push_to_hub:
        print(push(folder, options.push_to_hub, options.public))
    return 0
