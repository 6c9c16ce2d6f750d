"""Files of search spaces.

A space is a YAML file, or a text file in RecBole's format (`learning_rate choice [0.01,0.001]`):

    learning_rate: {loguniform: [1e-4, 1e-2]}
    peft_type: {choice: [lora, ia3]}
    peft_config.r: {choice: [4, 8], when: {peft_type: lora}}     # an entry of a dictionary; only with LoRA
    epochs: 20                                                   # no distribution: fixed in all trials
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.yaml_values import parse_value, read_yaml
from recbole_perpeft.studies.search.distributions import KINDS, distribution
from recbole_perpeft.studies.search.space import Parameter, SearchSpace


def read_space(path: Path) -> SearchSpace:
    """A search space from a `.yaml` or `.yml` file; any other file is read as RecBole's text.

    Raises:
        PerPEFTError: the file cannot be read, or an entry describes no values.
    """
    entries = read_yaml(path) if path.suffix in (".yaml", ".yml") else dict(_recbole_entries(path))
    parameters: list[Parameter] = []
    fixed: dict[str, Any] = {}
    for key, value in entries.items():
        where = f"{path}: {key}"
        kind = _kind_in(value, where)
        if kind is None:
            fixed[key] = value
        else:
            conditions = _conditions(value.get("when"), parameters, entries.keys() - fixed.keys(), where)
            parameters.append(Parameter(key, distribution(kind, value[kind], where), conditions))
    if not parameters:
        raise PerPEFTError(f"{path} searches over nothing: give a setting values, learning_rate: {{choice: [1e-3]}}")
    return SearchSpace(tuple(parameters), fixed)


def _kind_in(value: Any, where: str) -> str | None:
    """The distribution that an entry names; None for a fixed value, which may be a dictionary itself."""
    if not isinstance(value, dict):
        return None
    kinds = sorted(value.keys() & KINDS.keys())
    others = value.keys() - {"when"}
    if len(kinds) == 1 and others == set(kinds):
        return kinds[0]
    if kinds:
        raise PerPEFTError(f"{where} has {', '.join(map(str, value))}: give one distribution, and when beside it")
    close = [match for key in map(str, others) for match in difflib.get_close_matches(key, KINDS, n=1, cutoff=0.7)]
    if "when" in value or close:
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(KINDS)}"
        raise PerPEFTError(
            f"{where}: there is no distribution {', '.join(map(repr, others)) or 'beside when'}; {hint}"
        )
    return None


def _conditions(conditions: Any, above: list[Parameter], keys: set[str], where: str) -> dict[str, tuple[Any, ...]]:
    """What must hold for a parameter to be used: a value, or one of several, for each of other settings."""
    if conditions is None:
        return {}
    if not isinstance(conditions, dict):
        raise PerPEFTError(f"{where}: when must be `{{other_setting: value}}`, not {conditions!r}")
    allowed = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in conditions.items()}
    by_key = {parameter.key: parameter for parameter in above}
    for key, values in allowed.items():
        if key in keys - by_key.keys():
            raise PerPEFTError(f"{where} has a condition on {key}: put {key} above it")
        possible = by_key[key].distribution.all_values() if key in by_key else None
        never = [value for value in values if possible is not None and value not in possible]
        if possible is not None and never:
            raise PerPEFTError(f"{where}: {key} is never {never[0]!r}; its values are {', '.join(map(str, possible))}")
    return allowed


def _recbole_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines `setting distribution values` as RecBole reads them: bounds of loguniform are natural logarithms."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PerPEFTError(f"cannot read the search space {path}: {error}") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(words) < 3:
            raise PerPEFTError(f"{where}: {line!r} is not `setting distribution values`")
        key, kind, text = words
        if key in seen:
            raise PerPEFTError(f"{where}: {key} is there twice")
        seen.add(key)
        values = parse_value("values", text if text.startswith("[") else f"[{text}]")
        distribution(kind, values if kind != "loguniform" else _exponentials(values, where), where)
        yield key, {kind: values if kind != "loguniform" else _exponentials(values, where)}


def _exponentials(values: Any, where: str) -> list[float]:
    try:
        return [math.exp(value) for value in values]
    except (TypeError, OverflowError) as error:
        raise PerPEFTError(f"{where}: loguniform needs two natural logarithms `low,high`, not {values!r}") from error
