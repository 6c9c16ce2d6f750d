"""`recbole-perpeft search --model=PerPEFT --dataset=aspects --num_samples=16`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recbole_perpeft.cli.flags import settings_of, yes
from recbole_perpeft.cli.train import model_list
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.yaml_values import parse_value

_CLOSE = 0.85  # similarity of words; RecBole's setting `teacher` and the flag `searcher` are less similar
_HELP = """\
Search over the settings of a model with Ray Tune, on this machine or a cluster.

usage: recbole-perpeft search [--model=NAME] [--dataset=NAME] [--search=FILE] [--num_samples=N] [--key=value ...]

  --model=NAME --dataset=NAME          default PerPEFT and aspects, as for train
  --config_files=FILES  YAML files or presets with settings of all trials; what is searched over begins there
  --search=FILE         the search space: YAML, or RecBole's text format; default properties/search/<Model>.yaml
{flags}
  --estimate            print what all trials would take, from a few measured steps, and end
  --resume=FOLDER       go on with a search that was stopped
  --key=value           any setting of the model, fixed in all trials

The best trial is chosen by valid_metric on the valid items; only that one is evaluated on the test items, at the end.
best.yaml in the output is for train --config_files.

example:
  recbole-perpeft search --model=IISAN --dataset=aspects --num_samples=12"""


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Flags and settings."""
    return settings_of(words, ("help", "list_models", "ship_data", "estimate"))


def run(options: dict[str, Any]) -> int:
    """Search, or print what is asked for; the exit status."""
    if options.pop("help", False):
        print(_help())
    elif options.pop("list_models", False):
        print(model_list())
    elif yes("estimate", options.pop("estimate", False)):
        print(_estimate(options))
    else:
        print(_summary(_start(options)))
    return 0


def _help() -> str:
    from recbole_perpeft.studies.search.settings import SearchSettings

    lines = []
    for declared in SearchSettings.declared():
        default = "" if declared.default is None or declared.default is False else f" ({declared.default})"
        value = "" if declared.hint is bool else "=..."
        lines.append(f"{f'  --{declared.name}{value}'.ljust(23)} {declared.help}{default}")
    return _HELP.format(flags="\n".join(lines))


def _start(words: dict[str, Any]):
    from recbole_perpeft.studies.search.session import resume_search

    source = words.pop("resume", None)
    own = _own(words)
    if source is not None:
        if words:
            raise PerPEFTError(f"a resumed search has its settings already: leave out --{', --'.join(words)}")
        return resume_search(Path(source), own)
    return _new(words, own).carry_out()


def _new(words: dict[str, Any], own: dict[str, Any]):
    """A new search: its settings, and those of the trials."""
    from recbole_perpeft.core.settings import settings_from
    from recbole_perpeft.studies.search.session import NewSearch
    from recbole_perpeft.studies.search.settings import SearchSettings

    if own.get("searcher") == "grid" and "num_samples" in own:
        raise PerPEFTError("a grid has as many trials as it has points: leave out --num_samples")
    model, dataset, space = (words.pop(key, None) for key in ("model", "dataset", "search"))
    files = str(words.pop("config_files", "")).split()
    return NewSearch(model, dataset, space, files, words, settings_from(own, SearchSettings))


def _estimate(words: dict[str, Any]) -> str:
    if "resume" in words:
        raise PerPEFTError("--estimate is for a new search: leave out --resume, or --estimate")
    return _new(words, _own(words)).estimate()


def _own(words: dict[str, Any]) -> dict[str, Any]:
    """Takes what says how to search out of the words."""
    from recbole_perpeft.studies.search.settings import SEARCH_KEYS

    own = {key: _value(key, words.pop(key)) for key in sorted(SEARCH_KEYS & words.keys())}
    _refuse_misspelt_flags(words.keys() - {"search"}, SEARCH_KEYS | {"resume", "search", "estimate"})
    return own


def _refuse_misspelt_flags(words: Iterable[str], flags: Iterable[str]) -> None:
    """A flag of searches that is misspelt is no setting of the model either; say which flag is meant."""
    for word in words:
        close = difflib.get_close_matches(word, sorted(flags), n=1, cutoff=_CLOSE)
        if close:
            raise PerPEFTError(f"there is no flag --{word}, did you mean --{close[0]}?")


def _value(key: str, text: Any) -> Any:
    is_name = key in ("output", "address", "searcher", "scheduler")
    return text if is_name or not isinstance(text, str) else parse_value(key, text)


def _summary(report) -> str:
    from tabulate import tabulate

    machines = ["machines"] if report.table["machines"].nunique() > 1 else []
    columns = ["trial", "status", "score", "best_epoch", "trained_epochs", *machines, *report.parameters]
    rows = report.table[columns].astype(object).where(report.table[columns].notna(), None)
    headers = [report.valid_metric if name == "score" else name for name in columns]
    best, before = report.best, report.unchanged_score
    defaults = [] if before is None else [f"settings as they are: trial {report.unchanged}, {before:.6f}"]
    test = ", ".join(f"{name} {value:.4f}" for name, value in best["test_result"].items())
    return "\n".join(
        [
            "",
            tabulate(rows.values.tolist(), headers=headers, floatfmt=".4g", tablefmt="simple"),
            "",
            f"{len(report.table)} trials, {report.n_epochs:,} epochs of at most {report.max_epochs:,}",
            f"best: trial {best['trial']}, valid {report.valid_metric} {best['best_valid_score']:.6f}",
            *defaults,
            f"on the test items: {test}",
            f"best settings: {report.folder / 'best.yaml'}",
            f"plots: {report.folder / 'report.html'}",
        ]
    )
