"""Work of several processes."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from joblib.externals.loky import FIRST_COMPLETED, ProcessPoolExecutor, wait

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
Task = TypeVar("Task")
Result = TypeVar("Result")


def process_pool(
    n_workers: int, env: Mapping[str, str], start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Processes that end with this one, also where it is killed.

    loky starts processes that neither share the threads of torch, as forked ones do, nor import the user's script
    again, as spawned ones do: a script needs no `__main__` guard.

    Args:
        n_workers: how many.
        env: environment variables of theirs.
        start: called in each with the arguments before its first task.
        arguments: for `start`.
    """
    return ProcessPoolExecutor(
        n_workers,
        timeout=20,  # an idle worker ends; where the system does not see to it, so do those whose parent was killed
        initializer=_start,
        initargs=(os.getpid(), start, arguments),
        env=dict(env),
    )


def _start(parent: int, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent(parent)
    if start is not None:
        start(*arguments)


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
