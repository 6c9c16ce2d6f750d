"""Starting Ray on this machine, or joining a cluster; what is started here ends here."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.store.workers import RAY_OF_THIS_MACHINE

if TYPE_CHECKING:
    from recbole_perpeft.runs.config import Config

_MB = 2**20
_SMALLEST_STORE = 160 * _MB
_MOST_MARKED = 16 * _MB
_SECONDS_TO_ANSWER = 20.0
_LARGEST_SHARE = 0.3  # of the memory that is available: the work needs the rest
# Read by Ray's worker processes. A stopped trial ends at once, but a busy machine may take its time over it.
_WORKER_SETTINGS = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Seconds: on a busy machine worker processes take longer to start than Ray expects.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers yield to all other processes, as if this one had work of its own: it only waits for them.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Seconds, as above.
    "RAY_worker_register_timeout_seconds": "300",
    # Ctrl-C ends the search at once: every finished epoch is on disk, there is nothing to wait for.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Nobody announces the end of this machine.
_OF_THIS_MACHINE = {**RAY_OF_THIS_MACHINE, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# The journal has a line about a worker that died; the traceback is in the folder of Ray's state.
_LOG_LEVELS = {
    "ray": logging.ERROR,
    "ray.tune": logging.ERROR,
    "ray.train": logging.ERROR,
    "ray.tune.execution.tune_controller": logging.CRITICAL,
}


@contextmanager
def running_ray(address: str | None = None, store_bytes: int = 0, n_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of the block: SIGTERM ends it as Ctrl-C does, and no process of it is left.

    A Ray that runs in this process already is used and left running.

    Args:
        address: of a cluster: `auto`, `host:port` or `ray://host:port`; None starts Ray on this machine.
        store_bytes: what will be put into the object store.
        n_cpus: processors that Ray may hand out of this machine; None for all that this process may use.

    Raises:
        PerPEFTError: Ray cannot be imported or started, or there is no cluster at the address.
    """
    for key, value in (_SETTINGS | _WORKER_SETTINGS | ({} if address else _OF_THIS_MACHINE)).items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError as error:
        raise PerPEFTError(f"several processes or trials need Ray ({error}): pip install 'ray[data,tune]'") from error
    if ray.is_initialized():
        yield
        return
    if address:
        _check_answers(address)
    try:
        arguments = _to_join(address) if address else _to_start(store_bytes, n_cpus)
        started = _init(arguments, n_attempts=1 if address else 3)
    except Exception as error:  # Ray raises this very class where its processes do not start in time
        place = f"join the cluster at {address}" if address else "start Ray (a machine that is too busy?)"
        hint = "; if the cluster wants a token, set RAY_AUTH_MODE=token" if (address or "").startswith("ray:") else ""
        # The last line: Ray may put the traceback of another process before it.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise PerPEFTError(f"cannot {place}: {reason}{hint}") from error
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    before = signal.signal(signal.SIGTERM, _interrupt)
    with ended_with_this_program(() if address else started):
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def _init(arguments: Mapping[str, Any], n_attempts: int) -> list[psutil.Process]:
    """Start or join Ray. It gives its processes 30 seconds, which a busy machine may exceed at the first attempt.

    Returns:
        The processes that it has started.
    """
    import ray

    before = psutil.Process().children(recursive=True)
    while True:
        n_attempts -= 1
        try:
            ray.init(**arguments)
            return _children_except(before)
        except Exception:
            ray.shutdown()
            for process in _children_except(before):
                process.kill()
            if n_attempts == 0:
                raise


def _children_except(before: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process not in before]


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens, which Ray tries for minutes; one without a port is for Ray to find."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise PerPEFTError(
            f"cannot join the cluster at {address}: nothing answers there ({error}): is it the address that "
            "`ray start --head` printed?"
        ) from error


def _to_join(address: str) -> dict[str, Any]:
    return {
        "address": address,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": _WORKER_SETTINGS},
    }


def _to_start(store_bytes: int, n_cpus: int | None) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": n_cpus or cpu_count(),
        "object_store_memory": store_size(store_bytes, psutil.virtual_memory().available),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }


def store_size(needed: int, available: int) -> int:
    """Bytes for the object store: twice what the search puts there, and little if that is nothing.

    Args:
        needed: bytes of shipped data.
        available: bytes of memory that are free.

    Raises:
        PerPEFTError: the data are too large for this machine.
    """
    wanted = max(_SMALLEST_STORE, 2 * needed)
    largest = int(_LARGEST_SHARE * available)
    if needed + _SMALLEST_STORE > max(largest, _SMALLEST_STORE):
        raise PerPEFTError(
            f"shipping {needed / _MB:,.0f} MB through the object store takes too much of {available / _MB:,.0f} MB "
            "free memory: leave out --ship_data, and keep the data in a folder that all machines share"
        )
    return max(_SMALLEST_STORE, min(wanted, largest))


def settings_anywhere(config: Config) -> dict[str, Any]:
    """Settings of a run as plain types that mean the same in any folder."""
    settings = absolute_paths(config.to_dict(), "data_path", "cache_folder", "runs_folder")
    return settings | {"model": config["model"], "dataset": config["dataset"]}


def absolute_paths(settings: Mapping[str, Any], *folders: str) -> dict[str, Any]:
    """Settings whose paths mean the same in any folder; workers may start in another than this program.

    Args:
        settings: of a run.
        folders: keys of folders, which need not be there yet.
    """
    found = {key: _absolute(value) for key, value in settings.items()}
    return found | {key: str(Path(settings[key]).absolute()) for key in folders}


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_absolute(entry) for entry in value]
    # A name such as `aspects` may be a folder here too; what has a slash is meant as a path if it exists, and so is
    # the folder of an encoder or of a run.
    if isinstance(value, str) and ("/" in value and Path(value).exists() or _holds_a_model(Path(value))):
        return str(Path(value).absolute())
    return value


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "best.pth").is_file()


def check_resources(cpus: float, gpus: float, what: str, n: int = 1) -> None:
    """Refuse what the machines cannot run at once: Ray would wait for more of them.

    Args:
        cpus: that one needs.
        gpus: that one needs.
        what: one, in words.
        n: how many.

    Raises:
        PerPEFTError: the machines are too small or too few.
    """
    nodes = [node["Resources"] for node in _nodes()]
    if _places(nodes, cpus, gpus, n) >= n:
        return
    sizes = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    lack = "no machine has that" if n == 1 else f"the machines have no place for {n}"
    raise PerPEFTError(f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, and {lack}: there are {sizes}")


def _places(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float, n: int) -> float:
    """How many with such needs fit on machines; `n` for each machine where they need nothing."""
    needs = {"CPU": cpus, "GPU": gpus}
    return sum(min((node.get(key, 0) // need for key, need in needs.items() if need), default=n) for node in nodes)


def n_places(cpus: float, gpus: float) -> int:
    """How many workers with such needs the machines have a place for at once.

    Args:
        cpus: that each needs, above 0.
        gpus: that each needs.
    """
    return int(_places([node["Resources"] for node in _nodes()], cpus, gpus, 0))


def most_cpus(n: int, gpus: float) -> int:
    """The most processors that each of `n` workers can have at once; 1 where not even that has a place.

    Args:
        n: how many.
        gpus: that each needs.
    """
    nodes = [node["Resources"] for node in _nodes()]
    most = int(sum(node.get("CPU", 0) for node in nodes)) // n
    return next((cpus for cpus in range(most, 1, -1) if _places(nodes, cpus, gpus, n) >= n), 1)


def mark_of(run_folder: Path) -> int:
    """Bytes of memory that each process of a training asks Ray for: few, and by them its places are known again."""
    return 1 + zlib.crc32(str(run_folder).encode()) % _MOST_MARKED


def free_places(run_folder: Path) -> None:
    """Give back the places of a training that has ended however it ended.

    Ray keeps a group of places while the program runs that its creator belongs to. Ray Train watches over
    creators, but asks the dashboard whether they live, and for ever where there is none.

    Args:
        run_folder: of the training.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    mark = mark_of(run_folder)
    for name, group in placement_group_table().items():
        marks = {bundle.get("memory") for bundle in group["bundles"].values()}
        if mark in marks and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def n_machines() -> int:
    """Machines of the cluster that have processors to work with."""
    return sum(node["Resources"].get("CPU", 0) >= 1 for node in _nodes())


def n_gpus() -> float:
    """GPUs of the cluster."""
    import ray

    return ray.cluster_resources().get("GPU", 0)


def check_machines(paths: Mapping[str, Path], to_do: str, otherwise: str = "") -> None:
    """Refuse a cluster with machines that lack this package, or do not see a path.

    Args:
        paths: by what they are for.
        to_do: what they shall do, in words.
        otherwise: what helps beside a shared folder for all but the output.

    Raises:
        PerPEFTError: a machine cannot do it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=1)(_missing)
    for node in _nodes():
        machine = f"the machine {node['NodeManagerHostname']} of the cluster"
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            missing = ray.get(task.options(scheduling_strategy=there).remote([str(path) for path in paths.values()]))
        except ray.exceptions.RayError as error:
            reason = next((line for line in str(error).splitlines() if "No module named" in line), str(error))
            what = f"install this package there ({reason.strip()})"
            raise PerPEFTError(f"{machine} cannot {to_do}: {what}") from error
        for name, path in paths.items():
            if str(path) in missing:
                raise PerPEFTError(
                    f"{machine} does not see {path} ({name}): put it into a folder that all machines share"
                    + (f", or {otherwise}" if otherwise and name != "output" else "")
                )


def _missing(paths: Sequence[str]) -> list[str]:
    """Runs on a machine of the cluster."""
    return [path for path in paths if not os.path.exists(path)]


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _interrupt(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def child_environment() -> dict[str, str]:
    """The environment of a Python process that imports what this one does, this package above all."""
    paths = filter(None, [*sys.path, os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def ended_with_this_program(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """End processes after the block, however the block ends: a watching process reads a pipe until nobody holds it.

    Ray's own processes end with the program, but its agents linger for a minute, trying to report that.

    Args:
        processes: those to end. They are known by the time of their start too, so that no later one is meant.
    """
    if not processes:
        yield
        return
    words = [f"{process.pid}:{process.create_time()}" for process in processes]
    watch = subprocess.Popen(
        [sys.executable, "-m", __name__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not meant for it
        env=child_environment(),
    )
    try:
        yield
    finally:
        watch.communicate()  # closes its pipe


def _watch(words: Sequence[str]) -> None:
    sys.stdin.read()
    for word in words:
        pid, _, started = word.partition(":")
        try:
            process = psutil.Process(int(pid))
            if process.create_time() == float(started):
                process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    _watch(sys.argv[1:])
