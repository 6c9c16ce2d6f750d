"""Which settings exist: a misspelt key is refused with a suggestion, where RecBole would silently ignore it."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RecBoleModelSettings, RunSettings
from recbole_perpeft.core.settings import Kind, classes_of, classes_read, defaults_of, keys_of_kind, reachable
from recbole_perpeft.models import get_model, list_models

_KEY_READ = re.compile(r"""config(?:\[|\.get\()\s*["'](\w+)["']""")
_WITHOUT_KEYS = ("recbole_perpeft.", "torch.")  # models of this package declare theirs


def check_keys(
    given: Mapping[str, Any], known: Iterable[str], model_class: type, config: Mapping[str, Any]
) -> dict[str, str]:
    """Refuse keys that nothing reads.

    Args:
        given: what the user has set.
        known: what is a key whatever the model.
        model_class: the model. What it declares counts, and what the sources of RecBole's and users' models read.
        config: all settings by name.

    Returns:
        Keys that are read, but not by this model or not with these settings, with a sentence about each: a settings
        file may serve several models.

    Raises:
        PerPEFTError: keys that no model reads, each with the closest key that exists.
    """
    read = set(defaults_of((RunSettings, *classes_read(classes_of(model_class), config))))
    ways = ways_to_read(model_class)
    known = read.union(known) - (ways.keys() - read)
    unsure = sorted(given.keys() - known)
    if not unsure:
        return {}
    known |= keys_in_sources(model_class)
    of_models = {name: ways_to_read(get_model(name)) for name in list_models()}
    unread, unknown = {}, []
    for key in (key for key in unsure if key not in known):
        owners = [name for name, own in of_models.items() if key in own]
        if key in ways:
            how = " or ".join(", ".join(f"{name}: {value}" for name, value in way.items()) for way in ways[key])
            unread[key] = f"{key} is a setting for {how}, {model_class.__name__} does not read it as it is set"
        elif owners:
            unread[key] = f"{key} is a setting of {' and '.join(owners)}, {model_class.__name__} does not read it"
        elif key in _keys_of_any_model():
            unread[key] = f"{key} is a setting of other models, {model_class.__name__} does not read it"
        else:
            unknown.append(key)
    if unknown:
        candidates = known.union(*of_models.values())
        raise PerPEFTError("; ".join(_unknown_key(key, candidates) for key in unknown))
    return unread


def model_keys(model_class: type, *kinds: Kind) -> tuple[str, ...]:
    """Settings of some kinds that a model may read."""
    own = [cls for cls, _ in reachable(classes_of(model_class))] or [RecBoleModelSettings]
    return keys_of_kind([RunSettings, *own], *kinds)


def ways_to_read(model_class: type) -> dict[str, list[dict[str, Any]]]:
    """Settings that a model declares, each with the values of others with which it is read."""
    ways: dict[str, list[dict[str, Any]]] = {}
    for cls, way in reachable(classes_of(model_class)):
        for declared in cls.declared():
            ways.setdefault(declared.name, []).append(way)
    return ways


@cache
def keys_in_sources(model_class: type) -> frozenset[str]:
    """Settings that the modules of a model of RecBole or of a user read; of RecBole's, also what all of them share."""
    keys: set[str] = set()
    for base in model_class.__mro__:
        source = getattr(sys.modules.get(base.__module__), "__file__", None)
        if source and not base.__module__.startswith(_WITHOUT_KEYS):
            keys |= _keys_in(Path(source))
    return frozenset(keys) if classes_of(model_class) else _keys_of_shared_sources() | keys


@cache
def _keys_of_any_model() -> frozenset[str]:
    return frozenset().union(*map(_keys_in, _recbole_folder().rglob("*.py")))


def _unknown_key(key: str, candidates: set[str]) -> str:
    by_lower_name = {candidate.lower(): candidate for candidate in sorted(candidates)}
    close = difflib.get_close_matches(key.lower(), by_lower_name, n=1, cutoff=0.6)
    return f"unknown setting {key!r}" + (f", did you mean {by_lower_name[close[0]]!r}?" if close else "")


def _recbole_folder() -> Path:
    import recbole

    return Path(recbole.__file__).parent


@cache
def _keys_of_shared_sources() -> frozenset[str]:
    folder = _recbole_folder()
    single_models = {path for path in folder.glob("model/*_recommender/*.py")}
    return frozenset().union(*map(_keys_in, set(folder.rglob("*.py")) - single_models))


@cache
def _keys_in(source: Path) -> frozenset[str]:
    return frozenset(_KEY_READ.findall(source.read_text(encoding="utf-8")))
