"""What is wrong with a search is said before anything starts."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.search.space import Parameter, SearchSpace, with_point

_MODEL_MODULES = (
    "recbole_perpeft.data.loader",
    "recbole_perpeft.models.build",
    "recbole_perpeft.models.base",
    "recbole_perpeft.training.rates",
)
_OF_ALL_TRIALS = {
    "model": "one search is over one model",
    "dataset": "one search is over one data set",
    "valid_metric": "trials are compared by it",
    "metrics": "trials are compared by them",
    "topk": "trials are compared by them",
    "eval_args": "trials are compared under one protocol",
    "mask_history": "trials are compared under one protocol",
    "data_path": "trials are compared on one data set",
    "run_folder": "every trial has its own",
    "runs_folder": "every trial has its own folder",
}


def check_search(space: SearchSpace, settings: Mapping[str, Any]) -> Config:
    """Build the settings of trials at every value or bound of every parameter.

    Args:
        space: the search space.
        settings: fixed settings of all trials, with model and data set.

    Returns:
        The configuration where nothing is varied.

    Raises:
        PerPEFTError: a setting is unknown or not read by the model, a value is not possible, or the search has
            nothing to choose trials by.
    """
    for parameter in space.parameters:
        if parameter.key in _OF_ALL_TRIALS:
            raise PerPEFTError(f"cannot search over {parameter.key}: {_OF_ALL_TRIALS[parameter.key]}")
        if parameter.key in settings:
            raise PerPEFTError(
                f"{parameter.key} is searched over and fixed at {settings[parameter.key]!r}: choose one"
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
        _check_values(parameter, settings, config)
    return config


def _check_values(parameter: Parameter, settings: Mapping[str, Any], config: Config) -> None:
    name = parameter.key.partition(".")[0]
    condition = {key: allowed[0] for key, allowed in parameter.when.items()}
    base = Config(config_dict=with_point(settings, condition))
    for value in parameter.distribution.examples():
        try:
            changed = Config(config_dict=with_point(settings, condition | {parameter.key: value}))
            _check_is_read(name, changed)
            if name == parameter.key:
                _check_kind(base[name] if name in base else None, value)
                _check_bounds(name, value, base, changed)
        except PerPEFTError as error:
            raise PerPEFTError(f"{parameter.key} cannot be {value!r}: {error}") from error


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


def _check_bounds(key: str, value: Any, base: Config, changed: Config) -> None:
    """Refuse numbers that the typed settings of the package refuse; a run meets these only when it builds its model.

    Only numbers: what other values are possible may depend on further settings.
    """
    if _kind(value) != "a number":
        return
    for settings_class in _settings_classes(base.model_class, key):
        try:
            settings_from(base, settings_class)
        except PerPEFTError:
            continue  # a class of another model
        settings_from(changed, settings_class)


def _settings_classes(model_class: type, key: str) -> Iterator[type]:
    """Dataclasses of this package, imported with a model of it, that have a field of this name."""
    if not model_class.__module__.startswith("recbole_perpeft."):
        return
    for name in _MODEL_MODULES:
        importlib.import_module(name)
    for name, module in sorted(sys.modules.items()):
        if name.startswith("recbole_perpeft.") and module is not None:
            for entry in vars(module).values():
                is_own = isinstance(entry, type) and entry.__module__ == name and dataclasses.is_dataclass(entry)
                if is_own and any(each.name == key for each in dataclasses.fields(entry)):
                    yield entry


def _check_metric(config: Config) -> None:
    """RecBole looks up metrics when it evaluates, after an epoch."""
    from recbole.evaluator.register import metrics_dict

    unknown = [name for name in config["metrics"] if str(name).lower() not in metrics_dict]
    if unknown:
        raise PerPEFTError(f"there is no metric {unknown[0]!r}; RecBole has {', '.join(sorted(metrics_dict))}")
