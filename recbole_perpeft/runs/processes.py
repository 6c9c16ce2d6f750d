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
from concurrent.futures import Future, wait
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
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import LOG_FILE, RESULT_FILE, RunFolder
from recbole_perpeft.training.workers import Team, Workers

_RAY_STATE = "ray"
_LONGEST_REASON = 300  # characters
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 60
Callback = Callable[[int, float], None]
Work = Callable[[Config, RunFolder, Workers, Callback | None], Any]


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


def run_together(config: Config, folder: RunFolder, work: Work, callback_fn: Callback | None = None) -> dict[str, Any]:
    """Let `nproc` processes do the work of a run, and wait for them.

    Args:
        config: of the run.
        folder: of the run; on a cluster all machines must see it.
        work: called in each process, as a function of a module.
        callback_fn: called in this process with epoch and valid score after each evaluation, while the others wait. An
            exception of its own ends the training and is raised.

    Returns:
        What the first process has written as the result.

    Raises:
        PerPEFTError: the processes cannot be started, one has met wrong input, or they were lost too often.
    """
    nproc, address = config["nproc"], config["ray_address"]
    result = folder.path / RESULT_FILE
    plan = _Plan(config.model_class, cluster.settings_anywhere(config), folder.path.absolute(), work)
    state = plan.folder / _RAY_STATE
    remove_state(plan.folder)  # of processes that were killed
    processors = cpu_count()
    with folder.logged(level_of(config["state"])):
        LOGGER.info(f"{nproc} processes start, which takes a while")
    with ray_session.running_ray(address, n_cpus=max(nproc, processors)):
        gpus = int(bool(config["use_gpu"] and cluster.n_gpus()))
        cpus = config["cpus"] or (1 if address else max(1, processors // nproc))
        resources = {"CPU": cpus, "memory": cluster.mark_of(plan.folder)} | ({"GPU": gpus} if gpus else {})
        cluster.check_resources(cpus, gpus, "a process (nproc)", nproc)
        if address:
            paths = {"output": plan.folder, "data": config.dataset_folder.absolute()}
            cluster.check_machines(paths, "train")
        try:
            for attempt in range(1, config["max_failures"] + 2):
                lost = _attempt(plan, state / f"attempt-{attempt}", nproc, resources, callback_fn)
                if lost is None:
                    break
                if attempt > config["max_failures"]:
                    often = "once" if attempt == 1 else f"{attempt} times"
                    raise PerPEFTError(
                        f"the processes of the training were lost {often}, at last: {lost}; what was finished is "
                        f"kept: go on with --resume={plan.folder}"
                    )
                with folder.logged(level_of(config["state"])):
                    LOGGER.warning(f"a process was lost ({lost}); all go on after the last finished epoch")
        finally:
            remove_state(plan.folder)
    return json.loads(result.read_text(encoding="utf-8"))


def remove_state(run_folder: Path) -> None:
    """Remove what Ray Train keeps in the folder of a run while processes train; checkpoints are not in it."""
    shutil.rmtree(run_folder / _RAY_STATE, ignore_errors=True)


def _attempt(
    plan: _Plan, state: Path, nproc: int, resources: dict[str, float], callback_fn: Callback | None
) -> str | None:
    """Start the processes and wait for them.

    Returns:
        Why one was lost; None where the work is done.
    """
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    backend = "cpu:gloo,cuda:nccl" if "GPU" in resources else "gloo"
    on_this_machine = not plan.settings["ray_address"]
    desk = _desk() if callback_fn else None
    trainer = TorchTrainer(
        _errand(),
        train_loop_config={"plan": cloudpickle.dumps(plan), "desk": desk},
        torch_config=_of_this_machine(backend) if on_this_machine else TorchConfig(backend=backend),
        scaling_config=ScalingConfig(num_workers=nproc, use_gpu="GPU" in resources, resources_per_worker=resources),
        run_config=RunConfig(name=state.name, storage_path=str(state.parent)),
    )
    try:
        with followed(plan.folder / LOG_FILE):
            ended = _begin(trainer)
            if callback_fn:
                _attend(ended, desk, callback_fn)
            ended.result()
    except TrainingFailedError as error:
        return _reason(error)
    return None


def _begin(trainer: Any) -> Future[Any]:
    """Let it work in a thread of its own.

    In the main thread Ray Train takes Ctrl-C for itself, ends the program with status 0, and never gives it back.
    """
    ended: Future[Any] = Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:  # handed on as it is
            ended.set_exception(error)

    Thread(target=fit, daemon=True).start()
    return ended


def _attend(ended: Future[Any], desk: Any, callback_fn: Callback) -> None:
    """Answer what the first process leaves at the desk, until the training has ended."""
    import ray

    told = desk.told.remote()
    while not ended.done():
        if not ray.wait([told], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            continue
        try:
            epoch, score = ray.get(told)
        except ray.exceptions.RayError:  # the desk is lost, and whoever stands before it ends
            return
        try:
            callback_fn(epoch, score)
        except BaseException:
            desk.answer.remote(False)
            wait([ended], timeout=_SECONDS_TO_STOP)
            raise
        desk.answer.remote(True)
        told = desk.told.remote()


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


def train_here(plan: _Plan, desk: Any = None) -> None:
    """Runs in each process.

    Args:
        plan: what to do.
        desk: where to tell of an epoch and wait for the answer; None tells nobody.
    """
    import ray
    from ray.train.torch import get_device

    def tell(epoch: int, score: float) -> None:
        if not ray.get(desk.tell.remote(epoch, float(score))):
            raise SystemExit  # no error of this process, which the log would have to name

    workers, device = Team(), get_device()
    settings = plan.settings | ({"gpu_id": str(device.index)} if device.type == "cuda" else {})
    if workers.rank:
        settings |= {"log_wandb": False, "trackers": None}
    folder = RunFolder(plan.folder, writes=workers.rank == 0)
    is_told = desk is not None and folder.writes
    plan.work(Config(plan.model, config_dict=settings), folder, workers, tell if is_told else None)


# What follows passes through a process of Ray's that has no use for this package. Functions inside of functions travel
# by themselves, without their module, whose import takes seconds.


def _errand() -> Callable[[dict[str, Any]], None]:
    def work(arguments: dict[str, Any]) -> None:
        from recbole_perpeft.runs.processes import train_here

        train_here(pickle.loads(arguments["plan"]), arguments["desk"])

    return work


def _desk() -> Any:
    """A process of Ray's between the first process of a training and the one that waits for it."""
    import ray

    class Desk:
        def __init__(self):
            from asyncio import Queue

            self._told, self._answers = Queue(), Queue()

        async def tell(self, *words):
            await self._told.put(words)
            return await self._answers.get()

        async def told(self):
            return await self._told.get()

        async def answer(self, goes_on):
            await self._answers.put(goes_on)

    return ray.remote(num_cpus=0)(Desk).remote()


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
