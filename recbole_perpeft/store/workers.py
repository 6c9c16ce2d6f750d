"""Work of several processes."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from joblib.externals.loky import FIRST_COMPLETED, ProcessPoolExecutor, wait

# Read when Ray is imported: a Ray that starts on this machine alone then listens to 127.0.0.1, not to all networks.
RAY_OF_THIS_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
Task = TypeVar("Task")
Result = TypeVar("Result")


def finished_tasks(
    executor: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterable[Task], n_pending: int
) -> Iterator[Result]:
    """Results in the order in which they come; the workers end with the last one, or when nobody takes more.

    Args:
        executor: its processes.
        function: what to do with a task.
        tasks: taken as workers become free.
        n_pending: tasks that are handed out at once.
    """
    pending: set[Future[Result]] = set()
    try:
        for task in tasks:
            if len(pending) >= n_pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            pending.add(executor.submit(function, task))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def end_with_parent(parent: int) -> None:
    """Let the system kill this process once its parent has ended, at once and whatever it is doing (Linux alone).

    Args:
        parent: process id of the parent, which may have ended by now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
