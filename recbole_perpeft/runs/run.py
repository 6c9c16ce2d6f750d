"""Run, resume and load a model; factories that know this package's classes and fall back to RecBole's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.data.utils import get_dataloader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import ModelType, init_seed
from recbole.utils import get_trainer as get_recbole_trainer

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.logs import LOGGER, level_of, logged
from recbole_perpeft.core.plugins import check_recorded_plugins, load_plugins
from recbole_perpeft.core.protocol import protocol_line
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import keys_of_kind
from recbole_perpeft.core.whole import full_disk
from recbole_perpeft.data.atomic import is_log_there, prepare_dataset_folder
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.history import PHASES, union_of
from recbole_perpeft.data.loader import evaluation_loader, train_loader
from recbole_perpeft.data.log import check_same_data, with_checked_log
from recbole_perpeft.data.sampler import check_owners
from recbole_perpeft.models import get_model
from recbole_perpeft.runs.beyond import content_of, list_figures, result_of
from recbole_perpeft.runs.config import Config, changed
from recbole_perpeft.runs.folder import LOG_FILE, LOG_LINE, RunFolder, peak_gpu_memory_mb, peak_memory_mb
from recbole_perpeft.runs.ids import NO_FILTERS, read_ids, without_log, write_ids
from recbole_perpeft.runs.keys import ways_to_read
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.runs.slices import metrics_by_slice
from recbole_perpeft.training.checkpoint import load_checkpoint, restored
from recbole_perpeft.training.trackers import Trackers, tracked
from recbole_perpeft.training.trainer import run_trainer

__all__ = ["create_dataset", "data_preparation", "get_model", "get_trainer", "load", "resume", "run"]

_DATASET_OF_TYPE = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    callback_fn: Callable[[int, float], None] | None = None,
    with_test: bool = True,
) -> dict[str, Any]:
    """Train a model, choose the best epoch on the valid items, and evaluate it on the test items.

    Args:
        model: name or class, ours or RecBole's; PerPEFT by default.
        dataset: name of a data set below `data_path`; the bundled `aspects` by default.
        config_file_list: YAML files with settings.
        config_dict: settings that win over the files.
        saved: whether to write checkpoints; without, the best model is kept in memory and the run cannot be resumed.
        callback_fn: called with epoch (from 0) and valid score when an evaluated epoch is on disk.
        with_test: whether to evaluate the best epoch on the test items; without, `test_result` is empty.

    Returns:
        `best_valid_score`, `valid_score_bigger`, `best_valid_result` and `test_result` as RecBole, and `run_folder`,
        `model`, `dataset`, `seed`, `parameters`, `trainable_parameters`, `epochs`, `seconds_per_epoch` (mean by
        stage), `median_epoch_seconds` (training alone), `train_targets` of `train_interactions` (our models'),
        `seconds`, `peak_memory_mb`, `peak_gpu_memory_mb`; of a split at one time `test_slices`, the metrics by whether
        the train part knows user and target; `test_lists` and `test_lists_by_group`, what the lists are like beyond
        accuracy (`training.list_figures`).

    Raises:
        PerPEFTError: wrong settings or data.
    """
    config = Config(model, dataset, config_file_list, config_dict)
    folder = RunFolder.create(config)
    with full_disk(folder.path), folder.alone():
        return _run(config, folder, saved, callback_fn, with_test)


def resume(
    source: str | Path,
    config_dict: Mapping[str, Any] | None = None,
    callback_fn: Callable[[int, float], None] | None = None,
    with_test: bool = True,
) -> dict[str, Any]:
    """Continue an interrupted run in its folder; it ends with the numbers of an uninterrupted one.

    Args:
        source: the run folder, or its `last.pth`.
        config_dict: settings to change, such as `epochs`. Model and data set cannot change; a class of your own may
            be given as `model` where its name is not known yet.
        callback_fn: as for `run`.
        with_test: as for `run`.

    Returns:
        As `run`.

    Raises:
        PerPEFTError: no such run, a run of another model or data set, or one that another process is writing.
    """
    folder = RunFolder.open(source)
    with full_disk(folder.path), folder.alone():
        return _resume(folder, config_dict, callback_fn, with_test)


def _resume(folder: RunFolder, config_dict: Mapping[str, Any] | None, callback_fn, with_test: bool) -> dict[str, Any]:
    settings = RunRecord(folder.path).settings()
    changes = dict(config_dict or {})
    _check_names({key: settings[key] for key in ("model", "dataset")}, changes, str(folder.path))
    check_recorded_plugins(settings.get("plugin"), changes.get("plugin"), str(folder.path))
    load_plugins(changes.get("plugin"))
    if "train_windows" in ways_to_read(get_model(changes.get("model", settings["model"]))):
        settings = {"train_windows": "newest"} | settings  # version 0.1.0 knew no other rows and did not write the key
    return _run(Config(config_dict=changed(settings, changes)), folder, True, callback_fn, with_test)


def load(model_file: str | Path, config_dict: Mapping[str, Any] | None = None, needs_log: bool = True) -> tuple:
    """A trained model with its data.

    Args:
        model_file: a checkpoint, or a run folder for its `best.pth`.
        config_dict: settings to change, such as `data_path` on another machine; as for `resume`.
        needs_log: whether a missing log is an error; without, the data set then knows nothing but ids
            (`is_without_log`), of which the run folder keeps a record.

    Returns:
        Configuration, model, data set, and train, valid and test loader.

    Raises:
        PerPEFTError: not a checkpoint of this package, or it does not fit the data.
    """
    path = Path(model_file)
    path = path / "best.pth" if path.is_dir() else path
    content = load_checkpoint(path)
    missing = {"model", "dataset", "config", "state_dict", "other_parameter"} - content.keys()
    if missing:
        raise PerPEFTError(f"{path} is no checkpoint of a run: it has no {', '.join(sorted(missing))}")
    names = {"model": content["model"], "dataset": content["dataset"]}
    _check_names({"model": content["model"]}, config_dict or {}, str(path))
    check_recorded_plugins(content["config"].get("plugin"), (config_dict or {}).get("plugin"), str(path))
    unread = {"trackers": None, "log_wandb": False}  # a model is loaded where they need not be installed
    config = Config(config_dict=changed(content["config"] | names | unread, config_dict or {}))
    ids = None
    if not needs_log and not is_log_there(config):
        ids = read_ids(path.parent)
        config = Config(config_dict=changed(content["config"] | names | unread, dict(config_dict or {}) | NO_FILTERS))
    dataset, loaders, model = build_run(config, ids)
    check_same_data(content.get("data", {}), dataset, path, ("ids",))
    try:
        model.load_state_dict(content["state_dict"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise PerPEFTError(f"{path} does not fit the data set {config['dataset']}: {one_line(error)}") from error
    with restored(path, "other_parameter"):
        model.load_other_parameter(content["other_parameter"])
    model.eval()
    return config, model, dataset, *loaders


def _check_names(recorded: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Model and data set of a run are those that it was made with; a model may be given as its class."""
    for key, wanted in recorded.items():
        name = getattr(given.get(key), "__name__", given.get(key, wanted))
        if name != wanted:
            raise PerPEFTError(f"{where} is a run with {key} {wanted}, not {name}")


def create_dataset(config: Config, ids: tuple[np.ndarray, np.ndarray] | None = None):
    """The data set of a run, by the model's `dataset_class` or RecBole's choice; never from a pickle.

    Args:
        config: settings.
        ids: tokens of users and items that stand in for the log.

    Raises:
        PerPEFTError: the files are missing or cannot be read.
    """
    if ids is None:
        prepare_dataset_folder(config)
    dataset_class = with_checked_log(
        getattr(config.model_class, "dataset_class", None) or _recbole_dataset_class(config)
    )
    try:
        return dataset_class(config) if ids is None else without_log(dataset_class, *ids)(config)
    except PerPEFTError:
        raise
    except (ValueError, KeyError) as error:
        raise PerPEFTError(f"cannot read the data set in {config.dataset_folder}: {error}") from error


def _recbole_dataset_class(config: Config) -> type:
    datasets = importlib.import_module("recbole.data.dataset")
    by_type = _DATASET_OF_TYPE.get(config["MODEL_TYPE"], "Dataset")
    return getattr(datasets, f"{config['model']}Dataset", getattr(datasets, by_type))


def data_preparation(config: Config, dataset) -> tuple:
    """Split a data set; every model is evaluated on the same candidates (`mask_history`).

    Returns:
        Train, valid and test loader.

    Raises:
        PerPEFTError: there is nothing to train on.
    """
    built = dataset.build()
    if not len(built[0]):
        raise PerPEFTError(
            f"{config['dataset']}: the train part of eval_args has no row for {config['model']}, as if all users have "
            "a single interaction: choose another split, or data in which users have more"
        )
    if isinstance(dataset, SequenceDataset):
        train_data = train_loader(config, built[0], config.model_class.train_draws(config))
    else:
        train_data = _recbole_train_loader(config, dataset, built[0], _train_sampler(config, dataset, built))
    return train_data, *(evaluation_loader(config, built, phase) for phase in ("valid", "test"))


def _train_sampler(config: Config, dataset, built):
    """RecBole's sampler of train negatives; None if the model needs none.

    Raises:
        PerPEFTError: a user owns the whole catalogue.
    """
    negatives = config["train_neg_sample_args"]
    if negatives["distribution"] == "none":
        return None
    drawn = (negatives["distribution"], negatives["alpha"])
    if config["repeatable"]:
        return RepeatableSampler(list(PHASES), dataset, *drawn).set_phase("train")
    check_owners(union_of(built), dataset.item_num, dataset.field2id_token[dataset.uid_field])
    return Sampler(list(PHASES), built, *drawn).set_phase("train")


def _recbole_train_loader(config: Config, dataset, train_part, sampler):
    samplers = [sampler]
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        negatives = config["train_neg_sample_args"]
        samplers.append(KGSampler(dataset, negatives["distribution"], negatives["alpha"]))
    return get_dataloader(config, "train")(config, train_part, *samplers, shuffle=config["shuffle"])


def get_trainer(config: Config) -> type:
    """The trainer class of a run: the model's `trainer_class`, or RecBole's choice on top of `RunTrainer`."""
    own = getattr(config.model_class, "trainer_class", None)
    return own or run_trainer(get_recbole_trainer(config["MODEL_TYPE"], config["model"]))


def build_run(config: Config, ids: tuple[np.ndarray, np.ndarray] | None = None) -> tuple:
    """Data set, its loaders, and the model with fresh weights.

    Args:
        config: settings.
        ids: as for `create_dataset`.
    """
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config, ids)
    loaders = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, loaders[0]._dataset).to(config["device"])
    return dataset, loaders, model


def _run(config: Config, folder: RunFolder, saved: bool, callback_fn, with_test: bool) -> dict[str, Any]:
    config["checkpoint_dir"] = str(folder.path)
    level = level_of(config["state"])
    with logged(folder.path / LOG_FILE, LOG_LINE, level=level, ending="the run ends"):
        LOGGER.info(f"run folder: {folder.path}")
        folder.write_settings(config)
        folder.write_environment(config)
        LOGGER.info(protocol_line({name: config[name] for name in keys_of_kind([RunSettings], "protocol")}))
        with tracked(config, folder.path) as trackers:
            return _train_and_test(config, folder, saved, callback_fn, with_test, trackers)


def _train_and_test(
    config: Config, folder: RunFolder, saved: bool, callback_fn, with_test: bool, trackers: Trackers
) -> dict[str, Any]:
    began = perf_counter()
    dataset, (train_data, valid_data, test_data), model = build_run(config)
    LOGGER.info(dataset)
    if saved:
        write_ids(folder.path, dataset)
    LOGGER.debug(model)
    targets = _train_targets(train_data)
    if targets:
        LOGGER.info("{train_targets:,} of {train_interactions:,} train interactions are targets".format(**targets))
    LOGGER.info(f"{config['model']} on {config['device']}")
    if not valid_data:
        LOGGER.warning("there is no valid part: all epochs are trained, nothing is selected, the last model is kept")
    if with_test and not test_data:
        LOGGER.warning("there is no test part: nothing is tested")
    trainer = get_trainer(config)(config, model)
    trainer.keeps_files, trainer.trackers = saved, trackers
    if folder.last_checkpoint.is_file():
        trainer.resume_checkpoint(folder.last_checkpoint, train_data)
    content = content_of(config, dataset) if with_test else None
    progress = bool(config["show_progress"])
    score, valid_result = trainer.fit(
        train_data, valid_data, saved=True, show_progress=progress, callback_fn=callback_fn
    )
    groups = getattr(model, "user_group", None)
    figures = list_figures(config, train_data._dataset, groups, content) if with_test and test_data else None
    trainer.eval_collector.list_figures = figures
    test_result = trainer.evaluate(test_data, show_progress=progress) if with_test else None
    if test_result is not None and trainer.target_ranks is not None:
        folder.write_test_ranks(dataset, trainer.target_ranks, groups)
    trainer.close()
    slices = _slices(config, train_data._dataset, trainer.target_ranks) if test_result is not None else {}
    result = _result(config, model, trainer.history) | {
        **targets,
        **trainer.extra_result(),
        "best_valid_score": float(score) if valid_result else None,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": _numbers(valid_result),
        "test_result": _numbers(test_result),
        **slices,
        **result_of(figures, config),
        "seconds": round(perf_counter() - began, 1),
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(config["device"]),
        "run_folder": str(folder.path),
    }
    result |= trackers.result(result)
    folder.write_result(result)
    LOGGER.info(f"best valid: {result['best_valid_result']}")
    LOGGER.info(f"test result: {result['test_result']}")
    return result


def _train_targets(train_data) -> dict[str, int]:
    """How many interactions of the train part are targets, and how many it has; nothing for RecBole's own rows."""
    part = train_data._dataset
    if not isinstance(part, SequenceDataset):
        return {}
    return {"train_targets": int(part.target_counts().sum()), "train_interactions": len(part.interactions.items)}


def _slices(config: Config, train_part, ranks) -> dict[str, Any]:
    """Test metrics by whether the train part knows the user and the target; nothing but for splits at one time."""
    if ranks is None or "GT" not in config["eval_args"]["split"] or config["benchmark_filename"] is not None:
        return {}
    slices = metrics_by_slice(config, train_part.phase_history, train_part.item_num, ranks)
    for title, numbers in slices.items():
        LOGGER.info(f"test targets, {title}: {numbers}")
    return {"test_slices": slices}


def _result(config: Config, model: torch.nn.Module, history: list[dict[str, Any]]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {}
    for row in history:
        seconds.setdefault(row["stage"], []).append(row["train_seconds"])
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "epochs": len(history),
        "seconds_per_epoch": {stage: round(sum(times) / len(times), 3) for stage, times in seconds.items()},
        "median_epoch_seconds": median([time for times in seconds.values() for time in times] or [0.0]),
    }


def _numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items()}
