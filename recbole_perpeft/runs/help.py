"""The settings of a model as YAML: what each is where nobody sets it, what it does, and what it must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Setting, Settings, classes_of, reachable
from recbole_perpeft.models import get_model
from recbole_perpeft.runs.config import DEFAULT_DATASET, DEFAULT_MODEL, Config

# A model of RecBole's without settings of its own, and a data set that sets nothing.
_PLAIN_MODEL, _NO_DATASET = "Pop", "-"
_COLUMN = 32  # where comments begin


def settings_help(model: str | type | None = None) -> str:
    """One line a setting, each a line of YAML with a comment.

    Args:
        model: name or class; without, the settings of all runs.
    """
    config = Config(model or _PLAIN_MODEL, _NO_DATASET)
    values = config.final_config_dict | {
        "model": config.model if model else DEFAULT_MODEL,
        "dataset": DEFAULT_DATASET,
        "data_path": str(config.dataset_folder.parent),
    }
    lines = ["# What every run reads", *_lines(RunSettings.declared(), values)]
    known = {declared.name for declared in RunSettings.declared()}
    for title, declared in _sections(get_model(model)) if model else ():
        new = [each for each in declared if each.name not in known]
        known.update(each.name for each in new)
        if new:
            lines += ["", f"# {title}", *_lines(new, values)]
    return "\n".join(lines)


def _sections(model_class: type) -> Iterator[tuple[str, Sequence[Setting]]]:
    """The settings of each class and, before these, of its base classes, which have others in common with it."""
    for cls, way in reachable(classes_of(model_class)):
        condition = ", ".join(f"{key}: {value}" for key, value in way.items())
        for base in (base for base in reversed(cls.__mro__) if issubclass(base, Settings)):
            title = (base.__doc__ or base.__name__).splitlines()[0].partition(";")[0].removesuffix(".")
            yield title + (f", with {condition}" if condition and base is cls else ""), base.declared()


def _lines(settings: Iterable[Setting], values: Mapping[str, Any]) -> Iterator[str]:
    for declared in settings:
        value = values.get(declared.name, declared.default)
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        text = "~" if value is None else text.removesuffix("...\n").strip()
        limits = f" [{declared.requirement}]" if declared.is_limited else ""
        yield f"{f'{declared.name}: {text}'.ljust(_COLUMN - 1)} # {declared.help}{limits}"
