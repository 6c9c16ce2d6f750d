"""Work of several processes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from joblib.externals.loky import FIRST_COMPLETED, ProcessPoolExecutor, wait

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
