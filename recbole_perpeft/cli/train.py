"""The command line: `python -m recbole_perpeft --model=PerPEFT --dataset=aspects --key=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError

_SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}
_SWITCHES = ("help", "list_models")
_HELP = """\
Train and evaluate a recommender; RecBole's flags work here.

usage: python run_recbole.py [--model=NAME] [--dataset=NAME] [--config_files="a.yaml b.yaml"] [--key=value ...]

  --model=NAME         a model of this package ({models}) or of RecBole; default PerPEFT
  --dataset=NAME       a data set below data_path; default aspects, which is made when it is missing
  --config_files=...   YAML files with settings or presets ({presets}), separated by spaces;
                       later ones win
  --key=value          any setting; wins over the files
  --resume=FOLDER      continue an interrupted run in its folder (or give its last.pth)
  --list_models        print the names of all models
  -h, --help           this text; with --model=NAME also the settings of that model

examples:
  python run_recbole.py                                        PerPEFT on aspects
  python run_recbole.py --model=SASRec --seed=1                a model of RecBole under the same protocol
  python run_recbole.py --dataset=shop --data_path=my_data     reads my_data/shop/shop.inter, shop.item, images/
  python run_recbole.py --resume=runs/PerPEFT-aspects-...      goes on after the last finished epoch

Settings and their defaults
===========================
{settings}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; by default those of the process.

    Returns:
        Exit status: 0, or 2 for wrong input, which is reported on one line of the standard error.
    """
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        if settings.pop("help", False):
            print(help_text(settings.get("model")))
        elif settings.pop("list_models", False):
            print(model_list())
        else:
            print(_report(_start(settings)))
    except (PerPEFTError, OSError) as error:  # the system's errors name the file: a full disk, missing rights
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume=<run folder> goes on after the last finished epoch", file=sys.stderr)
        return 130
    return 0


def parse_arguments(arguments: Sequence[str], switches: Sequence[str] = _SWITCHES) -> dict[str, Any]:
    """Settings from words of the form `--key=value` or `--key value`.

    Args:
        arguments: the words.
        switches: keys that stand alone and are then True.

    Raises:
        PerPEFTError: a word is neither, a value is missing, or a key has two values.
    """
    settings: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        word = _SHORT.get(word, word)
        if not word.startswith("--") or word == "--":
            raise PerPEFTError(f"cannot make sense of {word!r}: settings look like --key=value (see --help)")
        key, equals, value = word[2:].partition("=")
        if key in switches and not equals:
            settings[key] = True
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise PerPEFTError(f"--{key} needs a value: --{key}=value")
            value = words.pop(0)
        if settings.get(key, value) != value:
            raise PerPEFTError(f"--{key} is given twice, as {settings[key]} and as {value}")
        settings[key] = value
    return settings


def help_text(model: str | None = None) -> str:
    """What `--help` prints: usage and the commented defaults, of a model too if it is named."""
    from recbole_perpeft.models import get_model, list_models
    from recbole_perpeft.runs.config import properties_folder

    files = [properties_folder() / "overall.yaml"]
    if model is not None:
        bases = reversed(get_model(model).__mro__)
        files += [properties_folder() / "model" / f"{base.__name__}.yaml" for base in bases]
    settings = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    presets = ", ".join(sorted(path.stem for path in (properties_folder() / "preset").glob("*.yaml")))
    return _HELP.format(models=", ".join(list_models()), settings=settings, presets=presets)


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


def _report(result: dict[str, Any]) -> str:
    """The table at the end of a run."""
    from tabulate import tabulate

    valid, test = result["best_valid_result"], result["test_result"]
    rows = [(name, valid.get(name), test.get(name)) for name in test]
    seconds = ", ".join(f"{value:g} s ({stage})" for stage, value in result["seconds_per_epoch"].items())
    return "\n".join(
        [
            "",
            f"{result['model']} on {result['dataset']}, seed {result['seed']}",
            tabulate(rows, headers=("metric", "valid", "test"), floatfmt=".4f", tablefmt="simple"),
            "",
            f"trainable parameters {result['trainable_parameters']:,} of {result['parameters']:,}",
            f"epochs {result['epochs']}, training an epoch {seconds or '-'}, whole run {result['seconds']:g} s, "
            f"peak memory {result['peak_memory_mb']:,.0f} MB",
            f"run folder: {result['run_folder']}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
