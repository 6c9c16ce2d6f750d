"""What is wrong with a search is said before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import keys_of_kind
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.search.space import Parameter, Point, SearchSpace, with_point

_OF_ALL_TRIALS = {
    "model": "one search is over one model",
    "dataset": "one search is over one data set",
    "nproc": "devices_per_trial says how many processes train each trial",
    **dict.fromkeys(keys_of_kind([RunSettings], "protocol"), "trials are compared under one protocol"),
    **dict.fromkeys(keys_of_kind([RunSettings], "place"), "it says where things are"),
}
_DRAWS = 20


def check_search(space: SearchSpace, settings: Mapping[str, Any]) -> Config:
    """Build the settings of trials at every value or bound of every parameter.

    Args:
        space: the search space.
        settings: of all trials, with model and data set; what the space has too is where the search begins.

    Returns:
        The configuration where nothing is varied.

    Raises:
        PerPEFTError: a setting is unknown or not read by the model, a value is not possible, or the search has
            nothing to choose trials by.
    """
    for parameter in space.parameters:
        if reason := _OF_ALL_TRIALS.get(parameter.key.partition(".")[0]):
            raise PerPEFTError(f"cannot search over {parameter.key}: {reason}")
    for key in ("model", "dataset"):
        if space.fixed.get(key, settings.get(key)) != settings.get(key):
            raise PerPEFTError(
                f"the search space names the {key} {space.fixed[key]}: name it by --{key}, and not there"
            )
    config = Config(config_dict=dict(settings))
    if config["eval_step"] < 1:
        raise PerPEFTError("eval_step is 0: trials are compared by their valid metrics, which need evaluations")
    _check_metric(config)
    for key in space.fixed:
        _check_is_read(key, config)
    keys = {parameter.key for parameter in space.parameters}
    for parameter in space.parameters:
        for key in parameter.when:
            if key not in config and key not in keys:
                raise PerPEFTError(f"{parameter.key} has a condition on {key!r}, which is no setting")
        is_used = all(key in keys or config[key] in allowed for key, allowed in parameter.when.items())
        _check_values(parameter, space, settings, is_used)
    return config


def check_fixed(space: SearchSpace, fixed: Mapping[str, Any]) -> None:
    """Refuse what is asked for by name and searched over at once.

    Raises:
        PerPEFTError: there is such a setting.
    """
    for parameter in space.parameters:
        name, _, entry = parameter.key.partition(".")
        value = fixed.get(name)
        if name in fixed and (not entry or isinstance(value, Mapping) and entry in value):
            raise PerPEFTError(f"{parameter.key} is searched over and fixed at {value!r}: choose one")


def _check_values(parameter: Parameter, space: SearchSpace, settings: Mapping[str, Any], is_used: bool) -> None:
    name = parameter.key.partition(".")[0]
    condition = {key: allowed[0] for key, allowed in parameter.when.items()} if is_used else {}
    base = _with_value(space, settings, condition)
    for value in parameter.distribution.examples():
        try:
            changed = _with_value(space, settings, condition | {parameter.key: value})
            if is_used:
                _check_is_read(name, changed)
            if name == parameter.key:
                _check_kind(base[name] if name in base else None, value)
        except PerPEFTError as error:
            raise PerPEFTError(f"{parameter.key} cannot be {value!r}: {error}") from error


def _with_value(space: SearchSpace, settings: Mapping[str, Any], point: Point) -> Config:
    """Settings at a value with all else as it is, or, where that does not work, with others drawn from the space."""
    try:
        return Config(config_dict=with_point(settings, point))
    except PerPEFTError:
        for drawn in space.draw(_DRAWS, settings, seed=0) if len(space.parameters) > len(point) else ():
            with suppress(PerPEFTError):
                return Config(config_dict=with_point(settings, drawn | point))
        raise


def _check_is_read(key: str, config: Config) -> None:
    if key in config.unread_settings:
        raise PerPEFTError(config.unread_settings[key])


def _check_kind(default: Any, value: Any) -> None:
    """Settings that are numbers stay numbers; models refuse other types only when they are built."""
    if _kind(default) != _kind(value) and default is not None and value is not None:
        hint = f"; to search over these write {{choice: {value!r}}}" if isinstance(value, list) else ""
        raise PerPEFTError(f"the default is {_kind(default)}, {default!r}{hint}")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), type(value).__name__)


def _check_metric(config: Config) -> None:
    """RecBole looks up metrics when it evaluates, after an epoch."""
    from recbole.evaluator.register import metrics_dict

    unknown = [name for name in config["metrics"] if str(name).lower() not in metrics_dict]
    if unknown:
        raise PerPEFTError(f"there is no metric {unknown[0]!r}; RecBole has {', '.join(sorted(metrics_dict))}")
