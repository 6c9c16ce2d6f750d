"""Which settings exist: a misspelt key is refused with a suggestion, where RecBole would silently ignore it."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError

_KEY_READ = re.compile(r"""config(?:\[|\.get\()\s*["'](\w+)["']""")


def keys_read_by(model_class: type) -> set[str]:
    """Settings that RecBole's sources read when they run `model_class`: its own modules and everything shared."""
    keys = set(_keys_of_shared_sources())
    for base in model_class.__mro__:
        source = getattr(sys.modules.get(base.__module__), "__file__", None)
        if base.__module__.startswith("recbole.") and source:
            keys |= _keys_in(Path(source))
    return keys


@cache
def keys_of_any_model() -> frozenset[str]:
    """Settings that any model of RecBole reads."""
    return frozenset().union(*map(_keys_in, _recbole_folder().rglob("*.py")))


def check_keys(
    keys: Iterable[str], known: set[str], model_class: type, other_models: Mapping[str, set[str]]
) -> dict[str, str]:
    """Refuse keys that nothing reads.

    Args:
        keys: what the user has set.
        known: what is certainly a key, the keys of the layered YAML files above all.
        model_class: the model; the sources of RecBole's models are searched only for keys that are not in `known`.
        other_models: settings of this package's other models, by model name.

    Returns:
        Keys that are read, but not by this model, with a sentence about each: a settings file may serve several
        models.

    Raises:
        PerPEFTError: keys that no model reads, each with the closest key that exists.
    """
    unsure = sorted(set(keys) - known)
    if not unsure:
        return {}
    known = known | keys_read_by(model_class)
    unread, unknown = {}, []
    for key in unsure:
        if key in known:
            continue
        owners = [name for name, model_keys in other_models.items() if key in model_keys]
        if owners:
            unread[key] = f"{key} is a setting of {' and '.join(owners)}, {model_class.__name__} does not read it"
        elif key in keys_of_any_model():
            unread[key] = f"{key} is a setting of other models, {model_class.__name__} does not read it"
        else:
            unknown.append(key)
    if unknown:
        candidates = known.union(*other_models.values())
        raise PerPEFTError("; ".join(_unknown_key(key, candidates) for key in unknown))
    return unread


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
