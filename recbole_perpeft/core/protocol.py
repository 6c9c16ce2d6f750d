"""How models are evaluated: `eval_args`, part by part, and the whole protocol in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError, shown

KEY = "eval_args"
# How many of a user's last rows leave the train part, and which part takes the last one.
HELD_OUT = {"valid_and_test": ("valid", "test"), "valid_only": ("valid",), "test_only": ("test",)}
_NAMES_OF_VALID = ("valid", "validation", "val", "dev")
_CHOICES = {"order": ("TO", "RO"), "group_by": ("user", "none", None)}
_PHASES = ("valid", "test")
_PARTS = ("split", *_CHOICES, "mode")
# Of a split at one time: which interactions after the border are targets; the first is the default.
TARGETS = ("last", "first", "random", "all", "successive")
DEFAULT_TARGET = TARGETS[0]
_OPTIONAL = ("target",)
_MODE = re.compile(r"full|labeled|(uni|pop)[1-9][0-9]*")
_INTERVAL = re.compile(r"[\[(]([^,]+),([^,]+)[\])]")
# What a kind of split means where the settings do not say more about it.
_USUAL_SPLITS = {"LS": "valid_and_test", "GT": 0.9, "RS": [0.8, 0.1, 0.1]}


def laid_over(settings: dict[str, Any], layer: Mapping[str, Any] | None) -> None:
    """Let a stronger layer of settings win; of `eval_args` only the parts that it names.

    RecBole takes `eval_args` as a whole, and its own defaults for what is missing: who names the mode alone would get
    a random split.

    Args:
        settings: of weaker layers; changed.
        layer: the settings of the stronger one.
    """
    arguments = (layer or {}).get(KEY)
    weaker = settings.get(KEY)
    settings |= layer or {}
    if isinstance(arguments, dict) and isinstance(weaker, dict):
        modes = [_modes(weaker.get("mode")), _modes(arguments.get("mode"))]
        mode = {"mode": modes[0] | modes[1]} if any(modes) else {}
        settings[KEY] = weaker | arguments | mode


def with_split(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Settings with a split of a kind: their own, if it is of this kind, or else the usual one.

    Args:
        settings: as far as they are given; the strongest layer.
        kind: `LS`, `GT` or `RS`.

    Raises:
        PerPEFTError: there is no such kind.
    """
    if kind not in _USUAL_SPLITS:
        raise PerPEFTError(f"--splits names {kind!r}: choose among {', '.join(_USUAL_SPLITS)}, such as --splits=LS,GT")
    given = settings.get(KEY) or {}
    own = given.get("split") or {} if isinstance(given, Mapping) else given
    if not isinstance(own, Mapping):
        raise PerPEFTError(f"{KEY} is {given!r}: it must be a dictionary such as {{split: {{LS: valid_and_test}}}}")
    arguments = dict(given)
    value = own.get(kind, _USUAL_SPLITS[kind])
    target = arguments.get("target") if kind == "GT" else None
    return dict(settings) | {KEY: arguments | {"split": {kind: value}, "target": target}}


def check_interval(what: str, interval: Any) -> None:
    """Whether RecBole can read an interval, which it otherwise leaves out.

    Args:
        what: The setting, for the message.
        interval: One or several, such as `[5,inf)` or `[1,3];(7,9]`; None for none.

    Raises:
        PerPEFTError: It is none.
    """
    if interval is None:
        return
    for part in str(interval).split(";"):
        found = _INTERVAL.fullmatch(part.strip())
        try:
            is_one = found is not None and float(found[1]) <= float(found[2])
        except ValueError:
            is_one = False
        if not is_one:
            raise PerPEFTError(f"{what} is {shown(interval)}: it must be an interval, such as [5,inf) for 5 and more")


def without_empty_parts(arguments: Any) -> Any:
    """`eval_args` without parts that need not be there and are None: they are as good as not named."""
    if not isinstance(arguments, dict):
        return arguments
    return {name: value for name, value in arguments.items() if name not in _OPTIONAL or value is not None}


def _modes(mode: Any) -> dict[str, Any]:
    """How each phase ranks: `mode` names both at once, or one by one."""
    if not isinstance(mode, dict):
        return {} if mode is None else dict.fromkeys(_PHASES, mode)
    for phase in mode:
        if phase not in _PHASES:
            raise PerPEFTError(f"eval_args: mode has no part {phase!r}, only {' and '.join(_PHASES)}")
    return mode


def check_eval_args(arguments: Mapping[str, Any]) -> None:
    """Refuse what RecBole takes no notice of, or fails with in the depths.

    Args:
        arguments: `eval_args` with all of its parts.

    Raises:
        PerPEFTError: a part is unknown, or its value is not possible.
    """
    for name in arguments:
        if name not in (*_PARTS, *_OPTIONAL):
            close = difflib.get_close_matches(str(name), (*_PARTS, *_OPTIONAL), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise PerPEFTError(f"eval_args has no part {name!r}, only {', '.join((*_PARTS, *_OPTIONAL))}{hint}")
    for name in _PARTS:
        if name not in arguments:
            raise PerPEFTError(f"eval_args has no {name}: it must have {', '.join(_PARTS)}")
    for name, choices in _CHOICES.items():
        if arguments[name] not in choices:
            raise PerPEFTError(f"eval_args: {name} is {shown(arguments[name])}; choose {choices[0]} or {choices[1]}")
    for mode in _modes(arguments["mode"]).values():
        if not isinstance(mode, str) or not _MODE.fullmatch(mode):
            raise PerPEFTError(
                f"eval_args: mode is {shown(mode)}; choose full, drawn candidates such as uni100 or pop100, or labeled"
            )
    _check_split(arguments["split"])
    _check_target(arguments)


def _check_split(split: Any) -> None:
    ways = (
        "{LS: valid_and_test} (or valid_only, test_only), a time for all users such as {GT: 0.9}, {GT: [0.8, 0.9]} or "
        "{GT: '2024-01-31'}, or shares such as {RS: [0.8, 0.1, 0.1]}"
    )
    kind, value = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    if kind == "LS" and isinstance(value, str) and value in HELD_OUT:
        return
    if kind == "GT":
        borders = value if isinstance(value, list | tuple) else [value]
        if len(borders) in (1, 2) and all(map(_is_border, borders)):
            return
    if kind == "RS" and isinstance(value, list | tuple) and len(value) == 3:
        numbers = [share for share in value if isinstance(share, int | float) and share >= 0]
        if len(numbers) == 3 and numbers[0] > 0:
            return
    raise PerPEFTError(f"eval_args: split is {shown(split)}; choose {ways}, of the train, valid and test part")


def _is_border(value: Any) -> bool:
    if isinstance(value, str):
        seconds_of(value)
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def seconds_of(text: str) -> float:
    """Unix seconds of a date or time in ISO 8601, by default of UTC.

    Raises:
        PerPEFTError: it is none.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise PerPEFTError(
            f"eval_args: split GT has the border {text!r}: give a share of the log below 1, a time as a number of the "
            "log, or a date such as '2024-01-31' or '2024-01-31 18:00'"
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


def _check_target(arguments: Mapping[str, Any]) -> None:
    target, is_global = arguments.get("target"), "GT" in arguments["split"]
    if is_global and arguments["order"] != "TO":
        raise PerPEFTError(f"eval_args: split GT is by time: set order to TO, not to {arguments['order']}")
    if target is None:
        return
    if target not in TARGETS:
        raise PerPEFTError(f"eval_args: target is {shown(target)}; choose one of {', '.join(TARGETS)}")
    if not is_global:
        raise PerPEFTError(
            f"eval_args: target {target} is for a split at one time, such as {{GT: 0.9}}, not for "
            f"{shown(arguments['split'])}; leave it out (target: ~)"
        )
    modes = {phase: mode for phase, mode in _modes(arguments["mode"]).items() if mode != "full"}
    if target == "all" and modes:
        phase, mode = next(iter(modes.items()))
        raise PerPEFTError(
            f"eval_args: target all ranks the whole catalogue, and mode of the {phase} part is {mode}: set mode to "
            "full, or target to successive"
        )


def places_of_parts(names: Sequence[str]) -> tuple[int, ...]:
    """Which of the train, valid and test part the files of `benchmark_filename` are, as places from 0.

    Args:
        names: their suffixes, in this order; the second of two is the test part unless its name says `valid`.

    Raises:
        PerPEFTError: there are neither two nor three.
    """
    if len(names) not in (2, 3) or len({*names}) < len(names):
        raise PerPEFTError(
            f"benchmark_filename is {list(names)}: name the files of the train, valid and test part, or of the train "
            "and the test part alone"
        )
    if len(names) == 3:
        return 0, 1, 2
    return (0, 1) if names[1].lower() in _NAMES_OF_VALID else (0, 2)


def protocol_line(settings: Mapping[str, Any]) -> str:
    """The whole protocol in the words of the settings.

    Args:
        settings: those that belong to the protocol; what is None is left out.
    """
    arguments = settings[KEY]
    optional = {name: arguments.get(name) for name in _OPTIONAL}
    flat = (
        {name: arguments[name] for name in _PARTS}
        | optional
        | {name: settings[name] for name in settings if name != KEY}
    )
    if settings.get("benchmark_filename") is not None:
        del flat["split"], flat["group_by"]  # the parts are given
    return "protocol: " + ", ".join(f"{name} {_plain(value)}" for name, value in flat.items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    return str(list(value) if isinstance(value, tuple) else value).replace("'", "")
