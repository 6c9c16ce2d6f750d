"""What can be chosen by name: built-in entries, which are imported when asked for, and those that users add."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from recbole_perpeft.core.errors import PerPEFTError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind.

    Args:
        key: The setting that chooses among them, or another word for messages.
        builtin: Place of each entry of this package by name, as `module:attribute`.
    """

    def __init__(self, key: str, builtin: Mapping[str, str] | None = None) -> None:
        self._key = key
        self._builtin = dict(builtin or {})
        self._added: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds an entry.

        Args:
            name: What users write.

        Raises:
            PerPEFTError: Another entry has the name.
        """

        def add(entry: T) -> T:
            # A notebook defines its class again; another class of the same name is a mistake.
            if name in self._builtin or _place(self._added.get(name, entry)) != _place(entry):
                raise PerPEFTError(f"{self._key}: {name!r} is taken; register it under another name")
            self._added[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._builtin, *self._added})

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._added

    def get(self, name: str) -> T:
        """The entry of a name.

        Raises:
            PerPEFTError: No entry has it; the message names similar ones, or all.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._builtin:
            close = difflib.get_close_matches(str(name).lower(), self.names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(self.names())}"
            raise PerPEFTError(f"{self._key} is {name!r}, which does not exist: {hint}")
        module, _, attribute = self._builtin[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


def _place(entry: object) -> tuple[object, object]:
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", entry)
