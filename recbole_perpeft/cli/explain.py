"""`recbole-perpeft explain --model_file=runs/<run> --output=explanations.tsv`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_perpeft.cli.flags import Flags
from recbole_perpeft.core.errors import PerPEFTError


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    flags = Flags(
        "explain",
        "Prints the explanations of a trained VIP5, or writes them, and tells how good they are.",
        "--model_file=runs/<run> --output=explanations.tsv",
    )
    flags.add_argument("--model_file", required=True, help="best.pth of a run, or its folder")
    flags.add_argument("--prompt", default="C-3", help="template (%(default)s; C-12 is not trained on)")
    flags.add_argument("--split", choices=("train", "valid", "test"), default="test", help="what is explained (test)")
    flags.add_argument("--beams", type=int, default=1, help="width of the beam (%(default)s: greedy)")
    flags.add_argument("--batch_size", type=int, default=256, help="prompts at once (%(default)s)")
    flags.add_argument("--output", type=Path, help="tab-separated file to write")
    flags.add_argument("--task", choices=("text",), help=argparse.SUPPRESS)  # of version 0.1.0, which had one task
    options = flags.parse(words)
    if options.beams < 1 or options.batch_size < 1:
        raise PerPEFTError("--beams and --batch_size must be 1 or more")
    return options


def run(options: argparse.Namespace) -> int:
    """Print the scores, and the rows if no file is named for them."""
    from recbole_perpeft.core.whole import written_whole
    from recbole_perpeft.use.explain import explain

    report = explain(options.model_file, options.prompt, options.split, options.beams, options.batch_size)
    if options.output is None:
        report.rows.to_csv(sys.stdout, sep="\t", index=False)
    else:
        with written_whole(options.output) as draft:
            report.rows.to_csv(draft, sep="\t", index=False)
    for name, score in report.scores.items():
        print(f"{name}\t{score:.2f}\tmost frequent sentence\t{report.baseline[name]:.2f}", file=sys.stderr)
    return 0
