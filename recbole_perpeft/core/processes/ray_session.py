"""Ray for the time of some work: started on this machine, or joined elsewhere."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes.children import ended_with_this_program

_MB = 2**20
_SMALLEST_STORE = 160 * _MB
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
_OF_THIS_MACHINE = {
    # It listens to 127.0.0.1 then, not to all networks.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# The journal has a line about a worker that died; the traceback is in the folder of Ray's state.
_LOG_LEVELS = {
    "ray": logging.ERROR,
    "ray.data": logging.ERROR,
    "ray.tune": logging.ERROR,
    "ray.train": logging.ERROR,
    "ray.tune.execution.tune_controller": logging.CRITICAL,
}


@contextmanager
def running_ray(address: str | None = None, store_bytes: int | None = 0, n_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of the block: SIGTERM ends it as Ctrl-C does, and no process of it is left.

    A Ray that runs in this process already is used and left running.

    Args:
        address: of a cluster: `auto`, `host:port` or `ray://host:port`; None starts Ray on this machine.
        store_bytes: what will be put into the object store; None where that is not known, for as much as Ray takes.
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
    with ended_with_this_program(() if address else started), _interrupted_by_sigterm():
        try:
            yield
        finally:
            ray.shutdown()


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


def _to_start(store_bytes: int | None, n_cpus: int | None) -> dict[str, Any]:
    available = psutil.virtual_memory().available
    return {
        "address": "local",
        "num_cpus": n_cpus or cpu_count(),
        "object_store_memory": None if store_bytes is None else store_size(store_bytes, available),
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


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt
