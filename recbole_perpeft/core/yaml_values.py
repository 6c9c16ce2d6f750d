"""Values of settings: from YAML files and from strings, without `eval` and without touching PyYAML's own loaders."""

from __future__ import annotations

import ast
import copy
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular

_MOST_VALUES = 100_000  # of a file of settings
# What is wrong with a text that is no YAML: PyYAML lets errors of dates out of range, of very long numbers and of very
# deep nesting through as Python's.
_NO_VALUE = (yaml.YAMLError, ValueError, OverflowError, RecursionError)
PLAIN_TYPES = (str, int, float, bool, list, tuple, dict, type(None))


class SettingsLoader(yaml.SafeLoader):
    """YAML as RecBole's files expect it: `1e-4` is a number (YAML 1.1 takes it for a string)."""


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _as_text(loader: SettingsLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


# No setting is a date: what looks like one stays the text that it is, as in JSON and on the command line.
SettingsLoader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; an empty file has none.

    Raises:
        PerPEFTError: the file is missing, is not YAML or is not a list of `key: value`.
    """
    try:
        text = read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PerPEFTError(f"cannot read the settings file {path}: {error}") from error
    try:
        settings = _load(text)
    except _NO_VALUE as error:
        raise PerPEFTError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise PerPEFTError(f"{path} must hold lines of the form `key: value`")
    if not all(isinstance(key, str) and key.strip() for key in settings):
        raise PerPEFTError(
            f"{path}{_place_of_no_name(text)}: a key is empty or no text; write `name_of_a_setting: value`"
        )
    return settings


def _place_of_no_name(text: str) -> str:
    """The line of the first key of a mapping that is empty or no text, for a message."""
    root = yaml.compose(text, Loader=SettingsLoader)
    for key, _ in root.value if root else ():
        is_text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
        if not is_text or not str(key.value).strip():
            return f", line {key.start_mark.line + 1}"
    return ""


def parse_value(key: str, text: str) -> Any:
    """The value that a string stands for: a Python literal, true/false, null, a YAML list or mapping, or itself.

    Intervals such as `[5,10]` stay strings, because RecBole parses them itself.
    """
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("~", "null"):
        return None
    if key.endswith("_num_interval"):
        return text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _parse_collection(text)
    return value if isinstance(value, PLAIN_TYPES) else text


def _parse_collection(text: str) -> Any:
    if not text.strip().startswith(("[", "{")):
        return text
    try:
        value = _load(text)
    except _NO_VALUE:
        return text
    return value if isinstance(value, list | dict) else text


def _load(text: str) -> Any:
    return copy.deepcopy(_loaded(text))


@lru_cache(maxsize=64)
def _loaded(text: str) -> Any:
    # Searches and comparisons make many configurations, each of the same dozen files: PyYAML takes 30 ms for them.
    value = yaml.load(text, Loader=SettingsLoader)
    if _size(value, {}) > _MOST_VALUES:
        raise ValueError(f"with its aliases written out it has more than {_MOST_VALUES:,} values")
    return value


def _size(value: Any, known: dict[int, float]) -> float:
    """Number of values in a value, each alias counted as what it stands for; infinite where one is within itself.

    Args:
        value: what was read.
        known: sizes of collections by their identity.
    """
    if not isinstance(value, list | dict | set | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        entries = [*value, *(value.values() if isinstance(value, dict) else ())]
        known[id(value)] = 1 + sum(_size(entry, known) for entry in entries)
    return known[id(value)]
