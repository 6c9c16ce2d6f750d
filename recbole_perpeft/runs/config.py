"""Settings of a run: RecBole's `Config` with this package's models and defaults.

From weak to strong: RecBole's defaults, `properties/overall.yaml`, RecBole's needs of a model type (a click model is
evaluated on labels), `properties/model/<Model>.yaml` of the model's base classes and its own,
`properties/dataset/<dataset>.yaml` and in it the section `models: {<Model>: ...}`, configuration files, the dictionary
(the command line ends up there). Of `eval_args`, whose parts are settings of their own, a layer changes what it names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType

from recbole_perpeft.core import compat
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import checked_name
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.plugins import load_plugins
from recbole_perpeft.core.protocol import KEY, laid_over, without_empty_parts
from recbole_perpeft.core.run_settings import RecBoleSettings, RunSettings
from recbole_perpeft.core.settings import (
    Settings,
    classes_of,
    classes_read,
    defaults_of,
    keys_of_kind,
    reachable,
    settings_from,
)
from recbole_perpeft.core.yaml_values import PLAIN_TYPES, SettingsLoader, parse_value, read_yaml
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.models import get_model
from recbole_perpeft.nn.losses.loss import LOSSES, LossChoice
from recbole_perpeft.runs.keys import check_keys
from recbole_perpeft.training.trackers import chosen_trackers

__all__ = ["Config", "changed", "properties_folder"]

DEFAULT_MODEL = "PerPEFT"
DEFAULT_DATASET = "aspects"
# RecBole derives these from other settings; they are never set and never stored.
DERIVED_KEYS = frozenset(
    {"MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "single_spec", "local_rank", "valid_metric_bigger"}
    | {"valid_neg_sample_args", "test_neg_sample_args", "checkpoint_dir", "run_folder"}
)
# RecBole can pickle data sets and loaders; such a file goes stale unnoticed and runs code when it is read.
REFUSED_KEYS = {
    "save_dataset": "data sets are built from their atomic files in seconds and are not pickled",
    "dataset_save_path": "data sets are built from their atomic files in seconds and are not pickled",
    "save_dataloaders": "loaders are built in seconds and are not pickled",
    "dataloaders_save_path": "loaders are built in seconds and are not pickled",
    "config_files": "files cannot name others; give them as --config_files, or as config_file_list in Python",
    "device": "it follows from use_gpu and gpu_id",
    "valid_metric_bigger": "it follows from valid_metric",
}
_NOTHING = ("~", "null", "none")
# Text, whatever number it looks like.
_TEXTS = frozenset({*keys_of_kind([RunSettings], "place"), "wandb_project"})
_RECBOLE_LOSSES = ("BPR", "CE")  # of its sequential models
COMMAND_LINE_KEYS = {
    "model",
    "dataset",
    "config_files",
    "nproc",
    "world_size",
    "encoding",
    "local_rank",
    "transform",
    "plugin",
}


def properties_folder() -> Path:
    """The folder of the default settings: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "properties"
    return installed if installed.is_dir() else package.parent / "properties"


class Config(RecBoleConfig):
    """Final settings by `config["key"]`, with RecBole's constructor.

    Unlike RecBole's class it never reads `sys.argv`, never changes `CUDA_VISIBLE_DEVICES`, evaluates no code in
    strings and accepts no key that nothing reads.

    Args:
        model: name or class of a model of this package or of RecBole.
        dataset: name of a data set below `data_path`.
        config_file_list: YAML files, or names of the presets in `properties/preset`; later ones win.
        config_dict: settings that win over the files. Strings are read as on a command line: `"1e-4"` is a number.

    Raises:
        PerPEFTError: a setting is unknown, or its value is not possible; the message names it.
    """

    parameters: dict[str, list[str]]  # the names of settings by what they are about

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except PerPEFTError:
            raise
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise PerPEFTError(f"the settings do not work: {error}") from error
        for cls in (RunSettings, *self.settings_classes):
            settings_from(self, cls)
        chosen_trackers(self)
        for sentence in self.unread_settings.values():
            LOGGER.warning(sentence)

    @property
    def dataset_folder(self) -> Path:
        """The folder of the data set's files (RecBole appends the name of the data set to `data_path`)."""
        return Path(self.final_config_dict["data_path"])

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain types; `Config(config_dict=...)` of them gives the same settings again."""
        settings = {
            key: _plain(value)
            for key, value in self.final_config_dict.items()
            if key not in DERIVED_KEYS and isinstance(value, PLAIN_TYPES)
        }
        if settings["train_neg_sample_args"]["distribution"] == "none":
            settings["train_neg_sample_args"] = None
        settings["data_path"] = str(self.dataset_folder.parent) if self.dataset != "ml-100k" else "dataset/"
        return settings

    def compatibility_settings(self):
        compat.apply()

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these lists, which are its module globals.
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}
        self._model_type_settings: dict[str, Any] = {}

    def _build_yaml_loader(self):
        return SettingsLoader

    def _load_config_files(self, file_list) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name in file_list or []:
            laid_over(settings, read_yaml(settings_file(name)))
        return settings

    def _load_variable_config_dict(self, config_dict):
        return {key: _plain(value) for key, value in (config_dict or {}).items()}

    def _load_cmd_line(self):
        return {}

    def _merge_external_config_dict(self):
        self.external_config_dict = {}
        given = {**self.file_config_dict, **self.variable_config_dict}
        load_plugins(RecBoleSettings(plugin=given.get("plugin")).plugin)
        for layer in (self.file_config_dict, self.variable_config_dict):
            self.external_config_dict = changed(self.external_config_dict, layer)

    def _get_model_and_dataset(self, model, dataset):
        model = model or self.external_config_dict.get("model", DEFAULT_MODEL)
        dataset = dataset or self.external_config_dict.get("dataset", DEFAULT_DATASET)
        model_class = get_model(model)
        return model_class.__name__, model_class, checked_name(str(dataset), "dataset")

    def _update_internal_config_dict(self, file):
        settings = read_yaml(Path(file))
        self.internal_config_dict |= settings
        if Path(file).parent.name == "quick_start_config":
            self._model_type_settings |= settings
        return settings

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        folder = properties_folder()
        own_dataset = _read_if_present(folder / "dataset" / f"{dataset}.yaml")
        by_model = own_dataset.pop("models", None) or {}
        for layer in (
            read_yaml(folder / "overall.yaml"),
            self._model_type_settings,
            *(_read_if_present(folder / "model" / f"{base.__name__}.yaml") for base in reversed(model_class.__mro__)),
            own_dataset,
            by_model.get(model) or {},
        ):
            laid_over(self.internal_config_dict, layer)

    def _check_keys(self, settings: dict[str, Any]) -> dict[str, str]:
        for key, reason in REFUSED_KEYS.items():
            value = self.external_config_dict.get(key)
            # Of the others, RecBole's own defaults are False and None.
            if value or (key == "valid_metric_bigger" and value is not None):
                raise PerPEFTError(f"{key} is not supported: {reason}")
        known = COMMAND_LINE_KEYS.union(self.internal_config_dict, *self.parameters.values())
        return check_keys(self.external_config_dict, known, self.model_class, settings)

    def _get_final_config_dict(self):
        declared = classes_of(self.model_class)
        of_other_models = self._without_loss_of_other_models(declared)
        settings = dict(self.internal_config_dict)
        laid_over(settings, self.external_config_dict)
        settings[KEY] = without_empty_parts(settings[KEY])
        self.settings_classes = classes_read(declared, settings)
        self.unread_settings = self._check_keys(settings) | of_other_models
        unused = {each.name for cls, _ in reachable(declared) for each in cls.declared()}
        defaults = defaults_of((RunSettings, *self.settings_classes))
        settings = defaults | {key: value for key, value in settings.items() if key in defaults or key not in unused}
        self._choose_negatives(settings)
        if "peft_config" not in self.external_config_dict and self._has_another_peft_type(defaults):
            settings["peft_config"] = {}
        for key, others in getattr(self.model_class, "replaced_defaults", {}).items():
            if key not in self.external_config_dict and any(map(self.external_config_dict.get, others)):
                settings[key] = None
        for key in ("data_path", "valid_metric", "metrics", "topk"):
            if settings[key] in (None, "", []):
                raise PerPEFTError(f"{key} is empty: leave it out for the usual one")
        for key in ("data_path", "checkpoint_dir", "valid_metric"):
            settings[key] = str(settings[key])
        settings_from(settings, RecBoleSettings)
        return settings

    def _without_loss_of_other_models(self, declared: tuple[type[Settings], ...]) -> dict[str, str]:
        """Leave `loss_type` out where it names a loss that this model does not know: a file may serve several models.

        Returns:
            By the key a sentence about it.

        Raises:
            PerPEFTError: RecBole's model has no such loss, which RecBole tells of its sampling alone.
        """
        name = self.external_config_dict.get("loss_type")
        own = self.internal_config_dict.get("loss_type")
        if own in _RECBOLE_LOSSES and name not in (None, *_RECBOLE_LOSSES, *LOSSES.names()):
            raise PerPEFTError(
                f"loss_type is {name!r}: {self.model_class.__name__} has {' and '.join(_RECBOLE_LOSSES)}; leave it "
                f"out for {own}"
            )
        if name not in LOSSES or any(cls is LossChoice for cls, _ in reachable(declared)):
            return {}
        del self.external_config_dict["loss_type"]
        return {
            "loss_type": f"loss_type {name} is for models of item content, {self.model_class.__name__} keeps its own"
        }

    def _choose_negatives(self, settings: dict[str, Any]) -> None:
        """Leave `train_neg_sample_args` out where RecBole's loader must draw none, and say so where it is given."""
        key, given = "train_neg_sample_args", self.external_config_dict.get("train_neg_sample_args")
        has_own_loader = _has_own_loader(self.model_class)
        if has_own_loader and given:
            self.unread_settings[key] = (
                f"{key} is for RecBole's models, {self.model_class.__name__} does not read it: its loss says what is "
                "drawn (loss_type, n_negatives, negative_distribution)"
            )
        if has_own_loader or given is None and self._learns_without_sampled_negatives(settings):
            settings[key] = None
        elif isinstance(given, dict) and given.get("sample_num", 1) in (0, None):
            raise PerPEFTError(f"{key}: sample_num is {given['sample_num']}: it must be at least 1")

    def _has_another_peft_type(self, declared: dict[str, Any]) -> bool:
        """Whether `peft_type` is not that of the defaults, whose `peft_config` then means nothing."""
        default = str(self.internal_config_dict.get("peft_type", declared.get("peft_type")))
        return str(self.external_config_dict.get("peft_type", default)).lower() != default.lower()

    def _learns_without_sampled_negatives(self, settings: dict[str, Any]) -> bool:
        """Whether RecBole's loader must draw no negatives: for cross-entropy over the catalogue."""
        if settings["MODEL_TYPE"] != ModelType.SEQUENTIAL or hasattr(self.model_class, "input_type"):
            return False
        return settings.get("loss_type") == "CE"

    def _init_device(self):
        """Choose the device among the visible ones; one process, one device."""
        settings = self.final_config_dict
        gpu_id = settings["gpu_id"]
        settings["gpu_id"] = ",".join(map(str, gpu_id)) if isinstance(gpu_id, list | tuple) else str(gpu_id)
        if settings.get("world_size", -1) > 1 or "local_rank" in settings:
            raise PerPEFTError("world_size and local_rank follow from nproc: leave them out")
        settings["batches_a_step"] = _batches_a_step(self.model_class, settings)
        if settings.get("groups_at_once") not in (None, 1):
            _check_groups_at_once(settings)
        settings |= {"single_spec": True, "local_rank": 0, "device": _device(settings)}


def _has_own_loader(model_class: type) -> bool:
    """Whether a model's train rows come from this package's loader."""
    return issubclass(getattr(model_class, "dataset_class", type), SequenceDataset)


def _batches_a_step(model_class: type, settings: Mapping[str, Any]) -> int:
    """Batches whose mean gradient makes a step: a resumed run keeps them, whatever number of processes it has."""
    nproc, several = settings["nproc"], settings["batches_a_step"] or settings["nproc"]
    if several > 1 and not (_has_own_loader(model_class) and hasattr(model_class, "trainer_class")):
        raise PerPEFTError(
            f"{model_class.__name__} trains in one process, a batch a step: nproc and batches_a_step are for the "
            "models of this package that train (RecBole's loaders draw one batch after another)"
        )
    if nproc > several:
        raise PerPEFTError(
            f"nproc is {nproc}, but a step has {several} batches (batches_a_step), one a process at least: set nproc "
            f"to {several} or less, or batches_a_step to {nproc}, which changes the training"
        )
    return several


def _check_groups_at_once(settings: Mapping[str, Any]) -> None:
    """Groups that train side by side do not see each other."""
    asked, n_batches = f"groups_at_once is {settings['groups_at_once']}", settings["batches_a_step"]
    if settings["nproc"] > 1:
        raise PerPEFTError(
            f"{asked} and nproc {settings['nproc']}: either processes share each step, or groups train side by side; "
            "set one of them to 1"
        )
    if settings["clip_grad_norm"] and n_batches > 1:
        raise PerPEFTError(
            f"{asked}, but clip_grad_norm with batches_a_step {n_batches} limits the gradient of several groups "
            "together: set batches_a_step or groups_at_once to 1, or leave clip_grad_norm out"
        )


def _device(settings: dict[str, Any]) -> torch.device:
    first = settings["gpu_id"].split(",")[0].strip()
    if not settings["use_gpu"] or first == "" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not first.isdigit() or int(first) >= torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        raise PerPEFTError(
            f"gpu_id {first!r} is not one of the {torch.cuda.device_count()} visible GPUs "
            f"(counted from 0; CUDA_VISIBLE_DEVICES: {visible})"
        )
    return torch.device("cuda", int(first))


def settings_file(name: str | Path) -> Path:
    """A file, or a preset of this package by its name alone."""
    preset = properties_folder() / "preset" / f"{name}.yaml"
    return preset if preset.is_file() and not Path(name).exists() else Path(name)


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them, whose strings are read as on a command line."""
    result = dict(settings)
    laid_over(result, {key: _parsed(key, value) for key, value in changes.items()})
    return result


def _parsed(key: str, value: Any) -> Any:
    if key in _TEXTS and isinstance(value, int):
        return str(value)
    is_text = key in ("model", "dataset") or (key in _TEXTS and str(value).strip().lower() not in _NOTHING)
    return parse_value(key, value) if isinstance(value, str) and not is_text else value


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):  # of a loop over `numpy.logspace` and the like
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value
