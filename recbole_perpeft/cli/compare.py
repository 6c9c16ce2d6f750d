"""`recbole-perpeft compare --models=SASRec,PerPEFT --seeds=3`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from recbole_perpeft.cli.flags import settings_of, yes
from recbole_perpeft.cli.train import model_list
from recbole_perpeft.core.errors import PerPEFTError

_HELP = """\
Train models under one protocol and write a report: quality with significance, cost, and who profits.

usage: recbole-perpeft compare --models=LIST [--dataset=NAMES] [--seeds=N] [--parallel=N] [--key=value ...]

  --models=LIST        models of this package or of RecBole, separated by commas. Model[key=value, ...] has settings of
                       its own, `as NAME` says how the tables call it. @FILE reads a YAML file of lines
                       `NAME: {{model: MODEL, key: value}}`; shipped: {shipped}
  --only=NAMES         a choice of these models by name, separated by ;
  --dataset=NAMES      data sets below data_path, separated by commas; default aspects
  --seeds=N            how many seeds, the first is --seed; default 3
  --splits=KINDS       several splits side by side, such as LS,GT (leave-one-out, one time for all users, shares RS),
                       with Kendall's tau of the models' order; eval_args says more about one of them
  --lists=FILES        what another tool recommends, as further rows: .csv, .tsv or .parquet files with the columns
                       user, item, score, separated by commas; `FILE as NAME` says how the tables call it
  --controls           further rows for each model of content: content of other items, noise, titles alone, photos
                       alone, ids alone, histories shuffled; for groups random ones and those of true_group_field
  --tune=N             before that, N trials for each model on the valid items with the first seed, over the search
                       space that comes with the package for it, but for what its entry sets; default 0
  --baseline=NAME      the model that the others are compared with; default the first
  --parallel=N         runs at a time, each in its own process; default 1
  --workers=ray        Ray places the runs, on this machine or with --ray_address=auto on the machines of a cluster,
                       as many at a time as fit, or --parallel
  --output=FOLDER      folder of the report; default comparison
  --true_group_field=COLUMN
                       column of the .user file with the users' true groups: tells how far models find them
  --code_version=NAME  use finished runs again that were made under this name, even if the code has changed since
  --estimate           print what all runs would take that are not finished, from a few measured steps, and end
  --config_files=...   YAML files with settings of all models, separated by spaces
  --key=value          any setting, of all models; wins over the files
  --list_models        print the names of all models
  -h, --help           this text

Split, candidates, metrics, valid_metric and early stopping belong to the comparison: they come from the defaults, the
data set or --key=value, a model cannot have its own.

Every run has a folder below runs_folder (default runs). The same command goes on where it was stopped, uses finished
runs again as long as settings, data and code are the same, and tries failed runs again. Exit status 1: some failed.

examples:
  recbole-perpeft compare --models=Pop,BPR,SASRec,GRU4Rec,GlobalPEFT,PerPEFT --dataset=aspects --baseline=SASRec
  recbole-perpeft compare --models="PerPEFT, PerPEFT[peft_type=ia3] as PerPEFT-IA3, PerPEFT[n_groups=2]" --parallel=2
  recbole-perpeft compare --models=@aspects --true_group_field=hidden_group
  recbole-perpeft compare --models=BPR,SASRec,GRU4Rec,PerPEFT --tune=16
"""


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Flags and settings."""
    return settings_of(words, ("help", "list_models", "controls", "estimate"))


def run(options: dict[str, Any]) -> int:
    """Compare, or print what is asked for; the exit status."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # what a run warns of is in its run.log
    if options.pop("help", False):
        print(_HELP.format(shipped=", ".join(_shipped())))
        return 0
    if options.pop("list_models", False):
        print(model_list())
        return 0
    return _compare(options)


def _compare(flags: dict[str, Any]) -> int:
    from recbole_perpeft.runs.config import DEFAULT_DATASET
    from recbole_perpeft.studies.compare import compare
    from recbole_perpeft.studies.compare.comparison import estimate_comparison
    from recbole_perpeft.studies.compare.jobs.specs import choose, parse_models

    if "models" not in flags:
        raise PerPEFTError("name the models: --models=SASRec,PerPEFT (see --help)")
    if "model" in flags:
        raise PerPEFTError("--model is for one model: compare with --models=SASRec,PerPEFT (see --help)")
    specs = parse_models(flags.pop("models"))
    if "only" in flags:
        specs = choose(specs, _names(flags.pop("only"), ";"))
    only_estimate = yes("estimate", flags.pop("estimate", False))
    datasets, output = _names(flags.pop("dataset", DEFAULT_DATASET), ","), flags.pop("output", "comparison")
    workers = flags.pop("workers", "processes")
    if workers not in ("processes", "ray"):
        raise PerPEFTError(f"--workers is {workers!r}: it must be processes or ray")
    as_fit = workers == "ray" and "parallel" not in flags
    n_parallel = None if as_fit else _whole_number("parallel", flags.pop("parallel", "1"))
    splits = _names(flags.pop("splits", ""), ",")
    own: dict[str, Any] = dict(
        baseline=flags.pop("baseline", None),
        lists=_names(flags.pop("lists", ""), ","),
        n_trials=_whole_number("tune", flags.pop("tune", "0")),
        workers=workers,
        when_done=_tell,
    )
    of_all: dict[str, Any] = dict(
        n_seeds=_whole_number("seeds", flags.pop("seeds", "3")),
        config_file_list=str(flags.pop("config_files", "")).split(),
        true_group_field=flags.pop("true_group_field", None),
        code_version=flags.pop("code_version", None),
        controls=yes("controls", flags.pop("controls", False)),
        config_dict=flags,
    )
    if only_estimate:
        print(estimate_comparison(specs, datasets, splits, n_parallel, **of_all))
        return 0
    comparison = compare(specs, datasets, output, splits=splits, n_parallel=n_parallel, **own, **of_all)
    print((comparison.folder / "report.md").read_text(encoding="utf-8"))
    print(f"report: {comparison.folder / 'report.html'}")
    return 1 if comparison.failures else 0


def _tell(number: int, total: int, outcome: Any) -> None:
    print(f"[{number}/{total}] {outcome}", file=sys.stderr, flush=True)


def _names(text: str, separator: str) -> list[str]:
    names = [name.strip() for name in text.split(separator)]
    return list(dict.fromkeys(filter(None, names)))


def _whole_number(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PerPEFTError(f"--{flag} is {text!r}: it must be a whole number") from None


def _shipped() -> list[str]:
    from recbole_perpeft.runs.config import properties_folder

    return [f"@{path.stem}" for path in sorted((properties_folder() / "compare").glob("*.yaml"))]
