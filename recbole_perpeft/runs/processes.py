"""A training of several processes, which Ray Train starts on this machine or on a cluster.

Each process does what a run of a single one does, and the first writes the run folder. A process that is lost ends the
others; all start again and go on from `last.pth`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import psutil
from joblib import cpu_count
from torch import distributed

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.logs import LOGGER, followed, level_of
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import LOG_FILE, RESULT_FILE, RunFolder
from recbole_perpeft.training.workers import Team, Workers

_RAY_STATE = "ray"
_LONGEST_REASON = 300  # characters
Work = Callable[[Config, RunFolder, Workers], Any]


@dataclass(frozen=True)
class _Plan:
    """What each process is told.

    Attributes:
        model: its class.
        settings: plain types.
        folder: the run folder.
        work: what to do.
    """

    model: type
    settings: dict[str, Any]
    folder: Path
    work: Work


def run_together(config: Config, folder: RunFolder, work: Work) -> dict[str, Any]:
    """Let `nproc` processes do the work of a run, and wait for them.

    Args:
        config: of the run.
        folder: of the run; on a cluster all machines must see it.
        work: called in each process, as a function of a module.

    Returns:
        What the first process has written as the result.

    Raises:
        PerPEFTError: the processes cannot be started, one has met wrong input, or they were lost too often.
    """
    nproc, address = config["nproc"], config["ray_address"]
    result = folder.path / RESULT_FILE
    result.unlink(missing_ok=True)  # of a run that was finished before it goes on
    plan = _Plan(config.model_class, cluster.settings_anywhere(config), folder.path.absolute(), work)
    state = plan.folder / _RAY_STATE
    processors = cpu_count()
    with folder.logged(level_of(config["state"])):
        LOGGER.info(f"{nproc} processes start, which takes a while")
    with followed(folder.path / LOG_FILE), cluster.running_ray(address, n_cpus=max(nproc, processors)):
        gpus = int(bool(config["use_gpu"] and cluster.n_gpus()))
        cpus = 1 if address else max(1, processors // nproc)
        cluster.check_resources(cpus, gpus, "a process (nproc)", nproc)
        if address:
            paths = {"output": plan.folder, "data": config.dataset_folder.absolute()}
            cluster.check_machines(paths, "train")
        try:
            _persist(plan, state, nproc, {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), config["max_failures"])
        finally:
            shutil.rmtree(state, ignore_errors=True)
    return json.loads(result.read_text(encoding="utf-8"))


def _persist(plan: _Plan, state: Path, nproc: int, resources: dict[str, float], max_failures: int) -> None:
    """Start the processes, and again where one is lost."""
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    backend = "cpu:gloo,cuda:nccl" if "GPU" in resources else "gloo"
    on_this_machine = not plan.settings["ray_address"]
    for failures in range(max_failures + 1):
        trainer = TorchTrainer(
            _errand(),
            train_loop_config={"plan": cloudpickle.dumps(plan)},
            torch_config=_of_this_machine(backend) if on_this_machine else TorchConfig(backend=backend),
            scaling_config=ScalingConfig(
                num_workers=nproc, use_gpu="GPU" in resources, resources_per_worker=resources
            ),
            run_config=RunConfig(name=f"attempt-{failures}", storage_path=str(state)),
        )
        try:
            _fit(trainer)
        except TrainingFailedError as error:
            reason = _reason(error)
            if failures == max_failures:
                raise PerPEFTError(
                    f"the processes of the training were lost {failures + 1} times, at last: {reason}; what was "
                    f"finished is kept: go on with --resume={plan.folder}"
                ) from error
            LOGGER.warning(f"a process was lost ({reason}); all go on after the last finished epoch")
        else:
            return


def _fit(trainer: Any) -> None:
    """Wait for it in this thread while it works in another.

    In the main thread Ray Train takes Ctrl-C for itself, ends the program with status 0, and never gives it back.
    """
    ended: Future[Any] = Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:  # handed on as it is
            ended.set_exception(error)

    Thread(target=fit, daemon=True).start()
    ended.result()


def _reason(error: Exception) -> str:
    """What has ended the processes, in a line.

    Raises:
        PerPEFTError: wrong input has: trying again would not help.
    """
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            for found in (cause, getattr(cause, "base_exc", None), getattr(cause, "cause", None)):
                if isinstance(found, PerPEFTError):
                    raise PerPEFTError(str(found)) from None
            cause = cause.__cause__
    return one_line(failures[0])[:_LONGEST_REASON]


def train_here(plan: _Plan) -> None:
    """Runs in each process."""
    from ray.train.torch import get_device

    workers, device = Team(), get_device()
    settings = plan.settings | ({"gpu_id": str(device.index)} if device.type == "cuda" else {})
    if workers.rank:
        settings |= {"log_wandb": False, "trackers": None}
    folder = RunFolder(plan.folder, writes=workers.rank == 0)
    plan.work(Config(plan.model, config_dict=settings), folder, workers)


# What follows passes through a process of Ray's that has no use for this package. Functions inside of functions travel
# by themselves, without their module, whose import takes seconds.


def _errand() -> Callable[[dict[str, bytes]], None]:
    def work(arguments: dict[str, bytes]) -> None:
        from recbole_perpeft.runs.processes import train_here

        train_here(pickle.loads(arguments["plan"]))

    return work


def _of_this_machine(backend: str) -> Any:
    """How processes of one machine meet: by a file, and over addresses that other machines do not reach.

    PyTorch's own store listens to all networks, and believes whoever writes to it.
    """
    from ray.train.torch import TorchConfig

    def meet(file: str, rank: int, size: int) -> None:
        addresses = psutil.net_if_addrs().items()
        own = next((name for name, of_name in addresses if any(one.address == "127.0.0.1" for one in of_name)), "lo")
        os.environ |= {"GLOO_SOCKET_IFNAME": own, "NCCL_SOCKET_IFNAME": own}
        store = distributed.FileStore(file, size)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size)

    backend_of_ray: Any = TorchConfig().backend_cls

    class MeetsByFile(backend_of_ray):
        def on_start(self, worker_group, backend_config):
            import ray

            file, n = os.path.join(tempfile.gettempdir(), f"recbole_perpeft-{uuid4().hex}"), len(worker_group)
            ray.get([worker_group.execute_single_async(rank, meet, file, rank, n) for rank in range(n)])

    class OfThisMachine(TorchConfig):
        @property
        def backend_cls(self):
            return MeetsByFile

    return OfThisMachine(backend=backend)
