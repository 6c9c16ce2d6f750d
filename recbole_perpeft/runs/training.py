"""A training from its first epoch to its result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from recbole.utils import calculate_valid_score

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.evaluation import evaluation_loader
from recbole_perpeft.runs.beyond import content_of, list_figures, result_of
from recbole_perpeft.runs.build import build, get_trainer
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RunFolder, peak_gpu_memory_mb, peak_memory_mb
from recbole_perpeft.runs.groups import is_placed_by_ray, train_groups
from recbole_perpeft.runs.ids import write_ids
from recbole_perpeft.store.catalogues import CATALOGUES_FILE
from recbole_perpeft.training.rank_metrics import metrics_by_slice
from recbole_perpeft.training.trackers import Trackers
from recbole_perpeft.training.workers import Workers


def train_and_test(
    config: Config, folder: RunFolder, workers: Workers, saved: bool, callback_fn, with_test: bool, trackers: Trackers
) -> dict[str, Any]:
    """Train, from `last.pth` on where there is one, test the best model, and write what the run folder holds of it.

    Args:
        config: of the run.
        folder: of the run.
        workers: the processes that share the training; the first writes.
        saved: whether checkpoints are written.
        callback_fn: called with epoch and valid score after each evaluation.
        with_test: whether to evaluate the best model on the test part.
        trackers: who is told.

    Returns:
        The result, as `run.run` describes it.
    """
    began = perf_counter()
    dataset, (train_data, valid_data, test_data), model = build(config)
    LOGGER.info(dataset)
    if saved and folder.writes:
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
    together = [workers] if workers.size > 1 else []  # trainers of RecBole know no others
    trainer = get_trainer(config)(config, model, *together)
    trainer.keeps_files, trainer.trackers = saved, trackers
    if (config["groups_at_once"] or 1) > 1 and not is_placed_by_ray():
        trainer.train_groups = partial(train_groups, config, folder)
    if folder.last_checkpoint.is_file():
        trainer.resume_checkpoint(folder.last_checkpoint, train_data)
        folder.go_on(config)
    content = content_of(config, dataset) if with_test else None
    progress = bool(config["show_progress"]) and folder.writes
    watched = watched_part(config, train_data, valid_data, test_data)
    score, valid_result = trainer.fit(train_data, watched, saved=True, show_progress=progress, callback_fn=callback_fn)
    kept = folder.path / CATALOGUES_FILE
    if kept.is_file():  # of an evaluation of the same weights, before the run was resumed
        read_catalogues(model, kept)
    is_sample = watched is not valid_data
    if is_sample:
        valid_result = trainer.evaluate(valid_data, show_progress=progress)
        score = calculate_valid_score(valid_result, trainer.valid_metric)
    if with_test and test_data and not is_sample:  # figures and ranks are by the groups of the best model
        trainer.load_model()
    groups = getattr(model, "user_group", None)
    figures = list_figures(config, train_data._dataset, groups, content) if with_test and test_data else None
    trainer.eval_collector.list_figures = figures
    test_result = None
    if with_test:
        test_result = trainer.evaluate(test_data, load_best_model=False, show_progress=progress)
    if saved and folder.writes and test_result is not None and hasattr(model, "write_catalogues"):
        model.write_catalogues(kept, config["keep_catalogues"] * 10**6)
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


def watched_part(config: Config, train_data, valid_data, test_data):
    """The valid loader by which epochs are chosen: the given one, or one of `eval_sample` of its users."""
    if not config["eval_sample"] or not valid_data:
        return valid_data
    built = [loader._dataset for loader in (train_data, valid_data, test_data)]
    sample = evaluation_loader(config, built, "valid", config["eval_sample"])
    if sample.sample_size == valid_data.sample_size:
        return valid_data
    LOGGER.info(
        f"epochs are evaluated on {config['eval_sample']:,} users ({sample.sample_size:,} of "
        f"{valid_data.sample_size:,} rows), the best one on all"
    )
    return sample


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


def read_catalogues(model: Any, path: Path) -> None:
    """Let a model that makes item vectors of content look for them in a file."""
    if hasattr(model, "read_catalogues"):
        model.read_catalogues(path)
