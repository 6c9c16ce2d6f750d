"""Search spaces: which settings are searched over, and what values they may have.

A space is a YAML file, or a text file in RecBole's format (`learning_rate choice [0.01,0.001]`):

    learning_rate: {loguniform: [1e-4, 1e-2]}
    peft_type: {choice: [lora, ia3]}
    peft_config.r: {choice: [4, 8], when: {peft_type: lora}}     # an entry of a dictionary; only with LoRA
    epochs: 20                                                   # no distribution: fixed in all trials
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular
from recbole_perpeft.core.yaml_values import parse_value, read_yaml
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.search.distributions import KINDS, Distribution, distribution

Point = dict[str, Any]

LARGEST_GRID = 100_000
_DRAWS_FOR_A_NEW_POINT = 100


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched over.

    Attributes:
        key: name of the setting; `a.b` is the entry b of the dictionary a.
        distribution: its values.
        when: values of other settings, by key, without which it is not set.
    """

    key: str
    distribution: Distribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchSpace:
    """What a search varies.

    A point of the space has a value for every parameter. `active` leaves those whose condition holds.

    Attributes:
        parameters: in the order of the file; conditions name only parameters that stand above.
        fixed: settings of all trials.
    """

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def active(self, point: Point, settings: Mapping[str, Any]) -> Point:
        """The values that a trial uses.

        Args:
            point: a value for every parameter; what it lacks stays as it is.
            settings: what the settings are where the search does not set them, for conditions on them.
        """
        chosen: Point = {}
        for parameter in self.parameters:
            values = {key: chosen.get(key, settings.get(key)) for key in parameter.when}
            met = all(values[key] in allowed for key, allowed in parameter.when.items())
            if met and parameter.key in point:
                chosen[parameter.key] = self._plain(parameter, point[parameter.key])
        return chosen

    def point_of(self, settings: Mapping[str, Any]) -> Point:
        """The point at which the search would change nothing; without what the settings do not have."""
        point: Point = {}
        for parameter in self.parameters:
            name, dot, entry = parameter.key.partition(".")
            holder, key = (settings.get(name) or {}, entry) if dot else (settings, name)
            if key in holder:
                point[parameter.key] = holder[key]
        return self.active(point, settings)

    def draw(self, n_samples: int, settings: Mapping[str, Any], seed: int, taken: Sequence[Point] = ()) -> list[Point]:
        """Random points, none twice; `n_samples` for each combination of the parameters that are a grid.

        Args:
            n_samples: How many.
            settings: All settings where nothing is varied.
            seed: Of what is drawn.
            taken: Points that are tried anyway.

        Returns:
            Fewer where the space has fewer.
        """
        generator = np.random.default_rng(seed)
        exhaustive = [parameter for parameter in self.parameters if _is_grid(parameter)]
        points = {_identity(self._complete(point, settings)): point for point in taken}
        for _ in range(n_samples):
            for combination in _combinations(exhaustive):
                for _ in range(_DRAWS_FOR_A_NEW_POINT):
                    drawn = {each.key: each.distribution.draw(generator) for each in self.parameters}
                    point = self._complete(drawn | combination, settings)
                    if points.setdefault(_identity(point), point) is point:
                        break
        return list(points.values())[len(taken) :]

    def grid(self, settings: Mapping[str, Any]) -> list[Point]:
        """All points.

        Raises:
            PerPEFTError: they are infinitely many, or more than anyone can try.
        """
        infinite = [each.key for each in self.parameters if each.distribution.all_values() is None]
        if infinite:
            raise PerPEFTError(
                f"a grid over {', '.join(infinite)} is infinite: give choice, grid, quniform or randint, "
                "or search with --searcher=random"
            )
        size = math.prod(len(each.distribution.all_values() or ()) for each in self.parameters)
        if size > LARGEST_GRID:
            raise PerPEFTError(f"the grid has {size:,} points, more than {LARGEST_GRID:,}: give fewer values")
        points: dict[str, Point] = {}
        for combination in _combinations(self.parameters):
            point = self._complete(combination, settings)
            points.setdefault(_identity(point), point)
        return list(points.values())

    def _complete(self, point: Point, settings: Mapping[str, Any]) -> Point:
        """The point with one value for all that differ only in what is not used."""
        active = self.active(point, settings)
        return {each.key: active.get(each.key, each.distribution.examples()[0]) for each in self.parameters}

    @staticmethod
    def _plain(parameter: Parameter, value: Any) -> Any:
        """Searchers return NumPy's numbers, floats for whole numbers, and 0.30000000000000004 for 3 steps of 0.1."""
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, float):
            return value
        nearest = parameter.distribution.clip(value)
        return nearest if math.isclose(nearest, value) else value


def with_point(settings: Mapping[str, Any], active: Point) -> dict[str, Any]:
    """Settings of a trial.

    Args:
        settings: fixed settings.
        active: what the trial varies. `a.b` goes into the dictionary a, beside what a has with all other settings.
    """
    result = dict(settings) | {key: value for key, value in active.items() if "." not in key}
    entries = {key: value for key, value in active.items() if "." in key}
    if not entries:
        return result
    # What a dictionary has by default may depend on other settings: peft_config on peft_type.
    resolved = Config(config_dict=result).final_config_dict
    for key, value in entries.items():
        name, _, entry = key.partition(".")
        if not isinstance(resolved.get(name), dict):
            raise PerPEFTError(f"{name} is {resolved.get(name)!r} and has no entry {entry}")
        resolved[name] = resolved[name] | {entry: value}
        result[name] = resolved[name]
    return result


def max_epochs(config: Config, space: SearchSpace) -> int:
    """Largest number of epochs of a trial, over all its stages."""
    keys = ["epochs"]
    if getattr(config.model_class, "personalised_stage", False):
        keys.append("epochs_global")
    examples = {each.key: each.distribution.examples() for each in space.parameters}
    return int(sum(max(examples.get(key, (config[key],))) for key in keys))


def _combinations(parameters) -> Iterator[Point]:
    keys = [parameter.key for parameter in parameters]
    for values in product(*(parameter.distribution.all_values() for parameter in parameters)):
        yield dict(zip(keys, values, strict=True))


def _is_grid(parameter: Parameter) -> bool:
    return getattr(parameter.distribution, "exhaustive", False)


def _identity(point: Point) -> str:
    """The same for 1 and 1.0."""
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in point.items()
    }
    return json.dumps(plain, sort_keys=True, default=str)


def read_space(source: Path | Mapping[str, Any]) -> SearchSpace:
    """A search space.

    Args:
        source: a `.yaml` or `.yml` file; any other file, which is read as RecBole's text; or what a file holds.

    Raises:
        PerPEFTError: the file cannot be read, or an entry describes no values.
    """
    place, entries = (source, _entries(source)) if isinstance(source, Path) else ("the search space", dict(source))
    parameters: list[Parameter] = []
    fixed: dict[str, Any] = {}
    for number, (key, value) in enumerate(entries.items(), start=1):
        if not isinstance(key, str) or not key.strip():
            raise PerPEFTError(f"{place}: the key {key!r} of entry {number} is no name of a setting")
        where = f"{place}: {key}"
        kind = _kind_in(value, where)
        if kind is None:
            fixed[key] = value
        else:
            conditions = _conditions(value.get("when"), parameters, entries.keys() - fixed.keys(), where)
            parameters.append(Parameter(key, distribution(kind, value[kind], where), conditions))
    if not parameters:
        raise PerPEFTError(f"{place} searches over nothing: give a setting values, learning_rate: {{choice: [1e-3]}}")
    return SearchSpace(tuple(parameters), fixed)


def _entries(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.suffix in (".yaml", ".yml") else dict(_recbole_entries(path))


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
        lines = read_regular(path).decode().splitlines()
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
