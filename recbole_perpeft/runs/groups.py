"""Independent groups of a run, each trained in a task of Ray, on this machine or on a cluster."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.core.whole import alone
from recbole_perpeft.models.perpeft.side_by_side import folder_of_group
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.build import build, get_trainer
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RunFolder

_SECONDS_FOR_ANOTHER_WORKER = 60
_SECONDS_BETWEEN_LOOKS = 1.0  # in which Ctrl-C is heard
# A task tells nobody; the run does when it has what all have left.
_OF_A_TASK = {"groups_at_once": 1, "trackers": None, "log_wandb": False, "show_progress": False}


def is_placed_by_ray() -> bool:
    """Whether Ray has given this process its place, as a trial or a run of a comparison; it then takes no others."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def train_group(model: type, settings: dict[str, Any], run_folder: Path, group: int) -> str:
    """Train a group of a run that stands before its last stage, in a folder of its own.

    Args:
        model: its class.
        settings: of the run, as plain types.
        run_folder: of the run, with a `last.pth`.
        group: its number.

    Returns:
        What went wrong; nothing if the group is trained, as its own `last.pth` then has it.
    """
    folder = folder_of_group(run_folder, group)
    try:
        # A worker that Ray believes dead may still be at work for a moment.
        with alone(folder, _SECONDS_FOR_ANOTHER_WORKER):
            folder.mkdir(exist_ok=True)
            config = Config(model, config_dict=settings)
            config["checkpoint_dir"] = str(folder)
            _, (train_data, valid_data, _), built = build(config)
            trainer = get_trainer(config)(config, built)
            own, of_run = (RunFolder(path).last_checkpoint for path in (folder, run_folder))
            trainer.resume_checkpoint(own if own.is_file() else of_run, train_data)
            trainer.fit_group(group, train_data, valid_data)
    except (PerPEFTError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def train_groups(config: Config, folder: RunFolder, groups: Sequence[int]) -> Iterator[int]:
    """Train groups in tasks of Ray, up to `groups_at_once` at a time, as many as there are places for.

    Args:
        config: of the run.
        folder: of the run; on a cluster all machines must see it.
        groups: their numbers, in the order in which they start.

    Yields:
        The number of each that has ended.

    Raises:
        PerPEFTError: Ray cannot be started or joined, there is no place for a single group, one has met wrong input,
            or its task was lost too often.
    """
    if not groups:
        return
    run_folder, address, at_once = folder.path.absolute(), config["ray_address"], config["groups_at_once"]
    with ray_session.running_ray(address):
        import ray

        gpus = int(bool(config["use_gpu"] and cluster.n_gpus()))
        cpus = config["cpus"] or (1 if address else max(1, cpu_count() // at_once))
        cluster.check_resources(cpus, gpus, "a group (groups_at_once)")
        if address:
            cluster.check_machines({"output": run_folder, "data": config.dataset_folder.absolute()}, "train groups")
        at_once, folders = min(at_once, cluster.n_places(cpus, gpus)), folder_of_group(run_folder, groups[0]).parent
        LOGGER.info(f"{len(groups)} groups train, {at_once} at a time, below {folders}")
        settings = cluster.settings_anywhere(config) | _OF_A_TASK | ({"gpu_id": "0"} if gpus else {})
        # A process for each group, as for each run: nothing that one leaves behind meets another.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=config["max_failures"], max_calls=1)(train_group)
        waiting, running = deque(groups), dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    group = waiting.popleft()
                    running[task.remote(config.model_class, settings, run_folder, group)] = group
                for answer in ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                    _check(answer, running[answer], run_folder)
                    yield running.pop(answer)
        finally:
            for answer in running:
                ray.cancel(answer, force=True)


def _check(answer: Any, group: int, run_folder: Path) -> None:
    import ray

    try:
        wrong = ray.get(answer)
    except ray.exceptions.RayTaskError:  # a mistake of ours, with its traceback
        raise
    except ray.exceptions.RayError as error:
        raise PerPEFTError(
            f"the task of group {group} was lost too often, at last: {one_line(error)}; what was finished is kept: go "
            f"on with --resume={run_folder}"
        ) from error
    if wrong:
        raise PerPEFTError(f"group {group}: {wrong}")
