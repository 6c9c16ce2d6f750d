"""Which models are compared: `PerPEFT, PerPEFT[peft_type=ia3] as PerPEFT-IA3`, or a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError, shown
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.models import get_model
from recbole_perpeft.runs.config import properties_folder

_ENTRY = re.compile(r"(?P<model>[\w.-]+)\s*(?:\[(?P<settings>.*)\])?\s*(?:(?<=[\s\]])as\s+(?P<name>\S.*))?", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"
_BEFORE_VALUE = frozenset("=:,[{(")


@dataclass(frozen=True)
class ModelSpec:
    """A model of the comparison.

    Attributes:
        name: what the tables call it.
        model: name of a model of this package or of RecBole.
        settings: what it has different from the model's defaults; strings are read as on a command line.
    """

    name: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def parse_models(models: str | Iterable[str | ModelSpec]) -> list[ModelSpec]:
    """Models from a text with commas between them, or from several texts and specs.

    An entry is `Model`, `Model[key=value, key=value]`, either followed by `as name`, or `@file`. A file is a YAML
    mapping `name: {model: Model, key: value}` (without `model` the name is the model); a name without a path is
    looked for in the package's `properties/compare/` too.

    Raises:
        PerPEFTError: an entry cannot be read, a model does not exist, or two entries have one name.
    """
    specs: list[ModelSpec] = []
    for part in [models] if isinstance(models, str) else models:
        if isinstance(part, ModelSpec):
            specs.append(part)
        else:
            specs += [spec for entry in _split(part, "--models") for spec in _specs_of(entry)]
    if not specs:
        raise PerPEFTError("--models names no model: --models=SASRec,PerPEFT")
    names = [spec.name for spec in specs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PerPEFTError(
            f"two models are named {repeated[0]!r}: give one of them another name, `Model[...] as name`"
        )
    for spec in specs:
        get_model(spec.model)
    return specs


def choose(specs: Sequence[ModelSpec], names: Iterable[str]) -> list[ModelSpec]:
    """The models with the given names, in their order.

    Raises:
        PerPEFTError: no model has such a name.
    """
    by_name = {spec.name: spec for spec in specs}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise PerPEFTError(f"no model of the comparison is named {unknown[0]!r}; there are {'; '.join(by_name)}")
    return [by_name[name] for name in names]


def read_models(path: Path) -> list[ModelSpec]:
    """The models in a YAML file, see `parse_models`.

    Raises:
        PerPEFTError: the file cannot be read, or an entry is no mapping.
    """
    specs = []
    for name, settings in read_yaml(path).items():
        if not isinstance(settings, dict | None):
            raise PerPEFTError(
                f"{path}: {name} must have settings `{{model: ..., key: value}}`, not {shown(settings)}"
            )
        settings = dict(settings or {})
        specs.append(ModelSpec(name, str(settings.pop("model", name)), settings))
    return specs


def _specs_of(entry: str) -> list[ModelSpec]:
    if entry.startswith("@"):
        path = Path(entry[1:])
        shipped = properties_folder() / "compare" / f"{entry[1:]}.yaml"
        return read_models(shipped if not path.is_file() and shipped.is_file() else path)
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise PerPEFTError(f"cannot make sense of the model {entry!r}: write Model[key=value, ...] as name")
    settings: dict[str, str] = {}
    for setting in _split(found["settings"] or "", entry):
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PerPEFTError(f"{entry}: {setting!r} is not key=value")
        if key in settings:
            raise PerPEFTError(f"{entry}: {key} is given twice")
        settings[key] = value.strip()
    plain_name = entry if settings else found["model"]
    return [ModelSpec((found["name"] or plain_name).strip(), found["model"], settings)]


def _split(text: str, place: str) -> list[str]:
    """Parts between commas that stand outside of brackets and quotes, without empty ones."""
    borders = [-1, *_outer_commas(text, place), len(text)]
    parts = (text[begin + 1 : end].strip() for begin, end in zip(borders, borders[1:], strict=False))
    return [part for part in parts if part]


def _outer_commas(text: str, place: str) -> Iterator[int]:
    open_brackets: list[str] = []
    quote = before = ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and before in _BEFORE_VALUE:  # elsewhere it is an apostrophe
            quote = character
        elif character in _OPENING:
            open_brackets.append(_CLOSING[_OPENING.index(character)])
        elif character in _CLOSING:
            if not open_brackets or open_brackets.pop() != character:
                raise PerPEFTError(f"{place}: the bracket {character!r} in {text!r} closes nothing")
        elif character == "," and not open_brackets:
            yield position
        before = character if character.strip() else before
    if open_brackets or quote:
        raise PerPEFTError(f"{place}: {open_brackets[-1] if open_brackets else quote!r} is missing in {text!r}")
