"""Run, resume and load a model; factories that know this package's classes and fall back to RecBole's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.logs import LOGGER, level_of
from recbole_perpeft.core.plugins import check_recorded_plugins, load_plugins
from recbole_perpeft.core.protocol import protocol_line
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import keys_of_kind
from recbole_perpeft.core.whole import full_disk
from recbole_perpeft.data.atomic import is_log_there
from recbole_perpeft.data.log import check_same_data
from recbole_perpeft.models import get_model
from recbole_perpeft.runs.build import build, create_dataset, data_preparation, get_trainer
from recbole_perpeft.runs.config import Config, changed
from recbole_perpeft.runs.folder import RunFolder
from recbole_perpeft.runs.ids import NO_FILTERS, read_ids
from recbole_perpeft.runs.keys import ways_to_read
from recbole_perpeft.runs.processes import run_together
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.runs.training import read_catalogues, train_and_test
from recbole_perpeft.store.catalogues import CATALOGUES_FILE
from recbole_perpeft.training.checkpoint import load_checkpoint, restored
from recbole_perpeft.training.trackers import Trackers, tracked
from recbole_perpeft.training.workers import ALONE, Workers

__all__ = ["create_dataset", "data_preparation", "get_model", "get_trainer", "load", "resume", "run"]

_OF_THE_WHOLE_RUN = ("seed", "eval_args", "mask_history", "valid_metric", "eval_sample")


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
        callback_fn: called in this process with epoch (from 0) and valid score when an evaluated epoch is on disk; the
            training waits for it, and ends with an exception of its.
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
    if "checkpoint_dir" in config.external_config_dict:
        LOGGER.warning(
            "checkpoint_dir is not read: checkpoints lie in the folder of the run (run_folder, runs_folder)"
        )
    folder = RunFolder.create(config)
    with full_disk(folder.path), folder.alone():
        return _start(config, folder, saved, callback_fn, with_test)


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
    after = changed(settings, changes)
    if Path(after.get("run_folder") or folder.path).resolve() != folder.path.resolve():
        raise PerPEFTError(f"{folder.path} is resumed in its own folder: leave out run_folder")
    config = Config(config_dict=after)
    _check_comparable(settings, config.to_dict(), folder.path)
    return _start(config, folder, True, callback_fn, with_test)


def _check_comparable(before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> None:
    """Epochs that were evaluated before are compared with those that follow, and draw from one seed.

    Raises:
        PerPEFTError: a setting is another on which that depends.
    """
    for key in _OF_THE_WHOLE_RUN:
        if key in before and after.get(key) != before[key]:
            raise PerPEFTError(
                f"{folder} is a run with {key} {before[key]}, not {after.get(key)}: its epochs would not compare; "
                "start another run"
            )


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
    recorded, given = content["config"] | names | unread, dict(config_dict or {})
    config, ids = _config_of(path, changed(recorded, given)), None
    if not needs_log and not is_log_there(config):
        ids = read_ids(path.parent)
        config = _config_of(path, changed(recorded, given | NO_FILTERS))
    with restored(path, "config"):
        dataset, loaders, model = build(config, ids)
    check_same_data(content.get("data", {}), dataset, path, ("ids",))
    try:
        model.load_state_dict(content["state_dict"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise PerPEFTError(f"{path} does not fit the data set {config['dataset']}: {one_line(error)}") from error
    with restored(path, "other_parameter"):
        model.load_other_parameter(content["other_parameter"])
    model.eval()
    read_catalogues(model, path.parent / CATALOGUES_FILE)
    return config, model, dataset, *loaders


def _config_of(path: Path, settings: dict[str, Any]) -> Config:
    """The settings of a checkpoint, which errors name."""
    try:
        with restored(path, "config"):
            return Config(config_dict=settings)
    except PerPEFTError as error:
        raise error if str(path) in str(error) else PerPEFTError(f"{path}: {error}") from error


def _check_names(recorded: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Model and data set of a run are those that it was made with; a model may be given as its class."""
    for key, wanted in recorded.items():
        name = getattr(given.get(key), "__name__", given.get(key, wanted))
        if name != wanted:
            raise PerPEFTError(f"{where} is a run with {key} {wanted}, not {name}")


def _start(config: Config, folder: RunFolder, saved: bool, callback_fn, with_test: bool) -> dict[str, Any]:
    if config["nproc"] == 1:
        return _run(config, folder, ALONE, callback_fn, saved, with_test)
    return run_together(config, folder, partial(_run, saved=saved, with_test=with_test), callback_fn)


def _run(
    config: Config, folder: RunFolder, workers: Workers, callback_fn, saved: bool, with_test: bool
) -> dict[str, Any]:
    config["checkpoint_dir"] = str(folder.path)
    with folder.logged(level_of(config["state"])):
        LOGGER.info(f"run folder: {folder.path}")
        if not folder.last_checkpoint.is_file():  # else its training accepts the settings first
            folder.write_settings(config)
            folder.write_environment(config)
        LOGGER.info(protocol_line({name: config[name] for name in keys_of_kind([RunSettings], "protocol")}))
        with tracked(config, folder.path) if folder.writes else nullcontext(Trackers()) as trackers:
            return train_and_test(config, folder, workers, saved, callback_fn, with_test, trackers)
