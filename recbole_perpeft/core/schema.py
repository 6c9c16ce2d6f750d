"""Whether what a file held has the types that were written."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from recbole_perpeft.core.errors import shown


def misfit(entries: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """The first of the entries that has another type, in words.

    Args:
        entries: what was read. It may lack entries, and have others.
        schema: types by name: classes, unions of them, `list[...]` and `dict[..., ...]`.
    """
    for name, hint in schema.items():
        if name in entries:
            found = _misfit(entries[name], hint, name)
            if found:
                return found
    return None


def _misfit(value: Any, hint: Any, where: str) -> str | None:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Any:
        return None
    if origin is types.UnionType:
        found = [_misfit(value, each, where) for each in inner]
        return None if None in found else found[0]
    classes: Any = (int, float) if origin is float else origin
    is_number = origin is not bool and isinstance(value, bool)  # to Python
    if not isinstance(value, classes) or is_number:
        return f"{where} is {shown(value)}"
    parts: Iterator[str | None] = iter(())
    if origin is list and inner:
        parts = (_misfit(each, inner[0], f"{where}[{place}]") for place, each in enumerate(value))
    elif origin is dict and inner:
        names = (_misfit(name, inner[0], f"a name in {where}") for name in value)
        parts = chain(names, (_misfit(each, inner[1], f"{where}[{name!r}]") for name, each in value.items()))
    return next(filter(None, parts), None)
