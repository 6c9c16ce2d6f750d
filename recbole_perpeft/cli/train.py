"""`recbole-perpeft train --model=PerPEFT --dataset=aspects --key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.cli.flags import settings_of, yes
from recbole_perpeft.core.errors import PerPEFTError

_HELP = """\
Train and evaluate a recommender; RecBole's flags work here.

usage: recbole-perpeft train [--model=NAME] [--dataset=NAME] [--config_files="a.yaml b.yaml"] [--key=value ...]

  --model=NAME         a model of this package ({models}) or of RecBole; default PerPEFT
  --dataset=NAME       a data set below data_path; default aspects, which is made when it is missing
  --config_files=...   YAML files with settings or presets ({presets}), separated by spaces;
                       later ones win
  --key=value          any setting; wins over the files
  --estimate           print what the run would take (time, memory, disk) from a few measured steps, and end
  --resume=FOLDER      continue an interrupted run in its folder (or give its last.pth)
  --list_models        print the names of all models
  -h, --help           this text; with --model=NAME also the settings of that model

examples:
  recbole-perpeft train                                        PerPEFT on aspects
  recbole-perpeft train --model=SASRec --seed=1                a model of RecBole under the same protocol
  recbole-perpeft train --dataset=shop --data_path=my_data     reads my_data/shop/shop.inter, shop.item, images/
  recbole-perpeft train --resume=runs/PerPEFT-aspects-...      goes on after the last finished epoch

From a checkout `python run_recbole.py` is the same.

Settings and their defaults
===========================
{settings}"""


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Flags and settings."""
    return settings_of(words, ("help", "list_models", "estimate"))


def run(options: dict[str, Any]) -> int:
    """Train, or print what is asked for; the exit status."""
    if options.pop("help", False):
        print(help_text(options.get("model")))
    elif options.pop("list_models", False):
        print(model_list())
    elif yes("estimate", options.pop("estimate", False)):
        print(_estimate(options))
    else:
        print(_report(_start(options)))
    return 0


def help_text(model: str | None = None) -> str:
    """What `--help` prints: usage and the settings with their defaults, of a model too if it is named."""
    from recbole_perpeft.models import list_models
    from recbole_perpeft.runs.config import properties_folder
    from recbole_perpeft.runs.help import settings_help

    presets = ", ".join(sorted(path.stem for path in (properties_folder() / "preset").glob("*.yaml")))
    return _HELP.format(models=", ".join(list_models()), settings=settings_help(model), presets=presets)


def model_list() -> str:
    """What `--list_models` prints."""
    from recbole_perpeft.models import list_models, list_recbole_models

    return "\n".join(["of this package:", *list_models(), "", "of RecBole:", *list_recbole_models()])


def _start(settings: dict[str, Any]) -> dict[str, Any]:
    from recbole_perpeft.runs.run import resume, run

    source = settings.pop("resume", None)
    files = str(settings.pop("config_files", "")).split()
    if source is None:
        return run(settings.pop("model", None), settings.pop("dataset", None), files, settings)
    if files:
        raise PerPEFTError("a resumed run has its settings already: leave out --config_files")
    return resume(Path(source), settings)


def _estimate(settings: dict[str, Any]) -> str:
    from recbole_perpeft.runs.estimate import estimate_run

    if "resume" in settings:
        raise PerPEFTError("--estimate is for a new run: leave out --resume, or --estimate")
    files = str(settings.pop("config_files", "")).split()
    return estimate_run(settings.pop("model", None), settings.pop("dataset", None), files, settings).table()


def _report(result: dict[str, Any]) -> str:
    """The table at the end of a run."""
    from tabulate import tabulate

    valid, test = result["best_valid_result"], result["test_result"]
    rows = [(name, valid.get(name), test.get(name)) for name in test or valid]
    seconds = ", ".join(f"{value:g} s ({stage})" for stage, value in result["seconds_per_epoch"].items())
    has_groups = "personalised" in result["seconds_per_epoch"]
    what_next = (
        [f"what each group looks at: recbole-perpeft explore --run={result['run_folder']}"] if has_groups else []
    )
    return "\n".join(
        [
            "",
            f"{result['model']} on {result['dataset']}, seed {result['seed']}",
            tabulate(rows, headers=("metric", "valid", "test"), floatfmt=".4f", tablefmt="simple"),
            "",
            f"trainable parameters {result['trainable_parameters']:,} of {result['parameters']:,}",
            f"epochs {result['epochs']}, training an epoch {seconds or '-'}, whole run {result['seconds']:g} s, "
            f"peak memory {result['peak_memory_mb']:,.0f} MB",
            *what_next,
            f"run folder: {result['run_folder']}",
        ]
    )
