"""Small typed settings: models take frozen dataclasses, not the configuration of a whole run."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from recbole_perpeft.core.errors import PerPEFTError

T = TypeVar("T")


def settings_from(config, cls: type[T]) -> T:
    """Build a dataclass from the settings that have the names of its fields.

    Args:
        config: anything with `key in config` and `config[key]`.
        cls: a dataclass; `__post_init__` checks values and may raise `ValueError`.

    Raises:
        PerPEFTError: a setting is missing, has another type than its field, or is refused by `__post_init__`.
    """
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name in config:
            values[field.name] = _convert(field.name, config[field.name], hints[field.name])
        elif not has_default:
            raise PerPEFTError(f"the setting {field.name} is missing")
    try:
        return cls(**values)
    except PerPEFTError:
        raise
    except ValueError as error:
        raise PerPEFTError(str(error)) from error


def _convert(key: str, value: Any, hint: Any) -> Any:
    for choice in _choices(hint):
        matches, converted = _as_type(value, choice)
        if matches:
            return converted
    raise PerPEFTError(f"the setting {key} must be {_describe(hint)}, not {value!r}")


def _choices(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _as_type(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` can be of type `hint`, and the value as that type. A bool is no number."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Any:
        return True, value
    if origin is typing.Literal:
        return value in typing.get_args(hint), value
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if origin is Path:
        return isinstance(value, str | Path), value and Path(value)
    if origin is tuple:
        return isinstance(value, list | tuple), value and tuple(value)
    if origin in (list, Sequence):
        return isinstance(value, list | tuple), value
    if origin in (dict, Mapping):
        return isinstance(value, dict), value
    return isinstance(value, origin), value


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "empty (~)"}
    parts = []
    for choice in _choices(hint):
        if typing.get_origin(choice) is typing.Literal:
            parts.extend(map(repr, typing.get_args(choice)))
        else:
            origin = typing.get_origin(choice) or choice
            parts.append(names.get(choice, getattr(origin, "__name__", str(origin))))
    return " or ".join(parts)
