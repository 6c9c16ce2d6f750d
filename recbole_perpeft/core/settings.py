"""Settings, one declaration each: its type, default, range and help are read off the field of a frozen dataclass.

    @dataclass(frozen=True)
    class SideSettings(Settings):
        '''How hidden states become vectors.'''

        side_rank: int = setting(64, "Inner width of a block.", least=1)

Models take such small typed settings, not the configuration of a whole run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from recbole_perpeft.core.errors import PerPEFTError, shown
from recbole_perpeft.core.registry import Registry

# What a setting does to the numbers of a run: `protocol`: models are compared under it; `rate`: it may change while a
# model learns; the others do nothing to them: `place` says where things are, `device` what computes, `display` what is
# shown.
Kind = Literal["protocol", "rate", "place", "device", "display"]
T = TypeVar("T")

_WORDS = MappingProxyType(
    {
        int: "a whole number",
        float: "a finite number",
        str: "text that is not empty",
        bool: "True or False",
        type(None): "empty (~)",
    }
    | {dict: "a mapping", tuple: "a list", list: "a list", Path: "a path"}
)
_PLURAL = MappingProxyType({int: "whole numbers", float: "finite numbers", str: "texts"})


@dataclass(frozen=True)
class Setting:
    """A setting as it is declared.

    Args:
        name: its key.
        hint: its type.
        default: what it is where nobody sets it; `dataclasses.MISSING` if it must be set.
        help: a sentence about it.
        least: a lower bound that it may reach.
        most: an upper bound that it may reach.
        above: a lower bound that it may not reach.
        below: an upper bound that it may not reach.
        choices: the values that are possible; empty for all of its type.
        kind: see `Kind`.
        variants: the settings classes that are read beside its own with some of its values.
        registry: what it chooses from; an entry's `settings_classes` are a variant.
    """

    name: str
    hint: Any
    default: Any
    help: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    kind: Kind | None = None
    variants: Mapping[Any, tuple[type[Settings], ...]] = dataclasses.field(default_factory=dict)
    registry: Registry | None = None

    @property
    def required(self) -> bool:
        """Whether it must be set."""
        return self.default is dataclasses.MISSING

    @property
    def is_limited(self) -> bool:
        """Whether some values of its type are not possible."""
        bounds = (self.least, self.most, self.above, self.below)
        is_list = any(typing.get_origin(hint) is Literal for hint in _alternatives(self.hint))
        return is_list or bool(self.possible) or any(bound is not None for bound in bounds)

    @property
    def requirement(self) -> str:
        """What a value must be, in words."""
        parts = [_words(hint) for hint in _alternatives(self.hint) if hint is not type(None)]
        if self.possible:
            parts = [f"one of {', '.join(map(str, self.possible))}"]
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        limits = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        sentence = " or ".join(parts) + (f", {limits}" if limits else "")
        return sentence + (f", or {_WORDS[type(None)]}" if type(None) in _alternatives(self.hint) else "")

    @property
    def plain_type(self) -> Any:
        """Its type beside being empty."""
        return next(hint for hint in _alternatives(self.hint) if hint is not type(None))

    @property
    def possible(self) -> Sequence[Any]:
        """The values that are possible; empty for all of its type."""
        return self.choices or (self.registry.names() if self.registry else ())

    def variant(self, value: Any) -> tuple[type[Settings], ...]:
        """The settings classes that are read with a value."""
        if self.registry is not None and value in self.registry.names():
            return classes_of(self.registry.get(value))
        return next((classes for key, classes in self.variants.items() if key == value), ())

    def checked(self, value: Any) -> Any:
        """A value as the type of the setting: a list as a tuple, text as a path.

        Raises:
            PerPEFTError: the value is not possible.
        """
        for hint in _alternatives(self.hint):
            matches, converted = _as_type(value, hint)
            if matches and (converted is None or (self._in_range(converted) and self._is_choice(converted))):
                return converted
        raise PerPEFTError(f"{self.name} is {shown(value)}: it must be {self.requirement}")

    def _is_choice(self, value: Any) -> bool:
        return not self.possible or value in self.possible

    def _in_range(self, value: Any) -> bool:
        if not isinstance(value, int | float):
            return True
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] = (),
    kind: Kind | None = None,
    variants: Mapping[Any, tuple[type[Settings], ...]] | None = None,
    registry: Registry | None = None,
) -> Any:
    """Declare a field of a `Settings` class; arguments as in `Setting`."""
    bounds = {"least": least, "most": most, "above": above, "below": below}
    rest = {"choices": tuple(choices), "kind": kind, "variants": variants or {}, "registry": registry}
    declared = {"help": help, **bounds, **rest}
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=declared)
    return dataclasses.field(default=default, metadata=declared)


def same_as(cls: type[Settings], name: str) -> Any:
    """Declare a field as another class does."""
    field = cls.__dataclass_fields__[name]
    return setting(_default(field), **field.metadata)


@dataclass(frozen=True)
class Settings:
    """Base of all settings: whoever has an object of it has values that are possible.

    Raises:
        PerPEFTError: A value has another type than declared, is out of range or no choice, or does not fit another.
    """

    def __post_init__(self) -> None:
        for declared in self.declared():
            object.__setattr__(self, declared.name, declared.checked(getattr(self, declared.name)))
        self.check()

    def check(self) -> None:
        """Rules between fields; raises `PerPEFTError`."""

    @classmethod
    def declared(cls) -> tuple[Setting, ...]:
        """The declarations, in order."""
        return _declared(cls)


def settings_from(config: Any, cls: type[T]) -> T:
    """Build settings from what a configuration has under the names of their fields.

    Args:
        config: anything with `key in config` and `config[key]`.
        cls: the class.

    Raises:
        PerPEFTError: a setting is missing, or its value is not possible.
    """
    for declared in _declared(cls):
        if declared.required and declared.name not in config:
            raise PerPEFTError(f"{declared.name} is missing: it must be {declared.requirement}")
    return cls(**{one.name: one.checked(config[one.name]) for one in _declared(cls) if one.name in config})


def classes_of(owner: type) -> tuple[type[Settings], ...]:
    """The settings classes that a class, such as a model, names in `settings_classes`; itself if it is one.

    Those of its base classes, of its trainer and of its data set count too. Where two classes declare a setting, the
    default of the first counts.
    """
    named = [owner] if issubclass(owner, Settings) else []
    named += [cls for base in owner.__mro__ for cls in vars(base).get("settings_classes", ())]
    parts = (getattr(owner, name, None) for name in ("trainer_class", "dataset_class"))
    named.extend(cls for part in parts if part is not None for cls in classes_of(part))
    return tuple(dict.fromkeys(named))


def reachable(classes: Iterable[type[Settings]]) -> Iterator[tuple[type[Settings], dict[str, Any]]]:
    """Settings classes and all variants below them, each with the values that bring it in."""
    for cls in classes:
        yield cls, {}
        for declared in cls.declared():
            for value in declared.variants or (declared.registry.names() if declared.registry else ()):
                for below, condition in reachable(declared.variant(value)):
                    yield below, {declared.name: value} | condition


def classes_read(classes: Iterable[type[Settings]], config: Mapping[str, Any]) -> tuple[type[Settings], ...]:
    """The settings classes that are read where settings are as they are.

    Args:
        classes: what is read in any case.
        config: settings by name; what it lacks is at its default.
    """
    found: dict[type[Settings], None] = {}
    waiting = list(classes)
    while waiting:
        found |= dict.fromkeys(waiting)
        values = {**defaults_of(found), **config}
        chosen = [cls for each in waiting for one in each.declared() for cls in one.variant(values[one.name])]
        waiting = [cls for cls in chosen if cls not in found]
    return tuple(found)


def defaults_of(classes: Iterable[type[Settings]]) -> dict[str, Any]:
    """The declared defaults by name; of several declarations the first counts."""
    defaults: dict[str, Any] = {}
    for declared in (one for cls in classes for one in cls.declared() if not one.required):
        defaults.setdefault(declared.name, copy.deepcopy(declared.default))
    return defaults


def keys_of_kind(classes: Iterable[type[Settings]], *kinds: Kind) -> tuple[str, ...]:
    """Names of the settings of some kinds, in the order of their declarations."""
    found = [declared.name for cls in classes for declared in cls.declared() if declared.kind in kinds]
    return tuple(dict.fromkeys(found))


def _read_declarations(cls: Any) -> tuple[Setting, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        Setting(field.name, hints[field.name], _default(field), **field.metadata) for field in dataclasses.fields(cls)
    )


_declared: Callable[[Any], tuple[Setting, ...]] = functools.cache(_read_declarations)


def _default(field: dataclasses.Field) -> Any:
    make = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _as_type(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` can be of type `hint`, and the value as that type. A bool is no number."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Any:
        return True, value
    if origin is Literal:
        return value in typing.get_args(hint), value
    if origin in (int, float):
        number = Integral if origin is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and _is_finite(value), value
    if origin is Path:
        return isinstance(value, str | Path) and value != "", Path(value) if isinstance(value, str) else value
    if origin is str:
        return isinstance(value, str) and value != "", value
    if origin is type(None):
        return value is None or value == "", None
    if origin in (tuple, list):
        entries = typing.get_args(hint)[:1] or (Any,)
        matches = isinstance(value, list | tuple) and all(_as_type(entry, entries[0])[0] for entry in value)
        return matches, origin(value) if matches else value
    return isinstance(value, origin), value


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond those of 8 bytes
        return False


def _words(hint: Any) -> str:
    origin, entries = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, entries))}"
    of = f" of {_PLURAL[entries[0]]}" if origin in (list, tuple) and entries and entries[0] in _PLURAL else ""
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin))) + of
