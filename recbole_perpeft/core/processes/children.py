"""Python processes that this one starts, and their end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil


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
