"""Checkpoints that are written while the training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recbole_perpeft.training.checkpoint import copied, save_checkpoint

_AT_ONCE = 2  # the best and the last model of an epoch


class CheckpointWriter:
    """Writes checkpoints one after the other, inside a `with` block in a thread beside the caller.

    There, what a checkpoint holds is copied to the CPU before `write` returns, and at most two copies wait to be
    written: whoever trains faster than the disk takes checkpoints waits for it. The block ends when all are written.

    Raises:
        PerPEFTError: as `save_checkpoint`. Inside the block, it comes with a later call, or at the end of the block.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = deque[Future[None]]()

    def __enter__(self) -> CheckpointWriter:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        return self

    def __exit__(self, kind, error, trace) -> None:
        assert self._thread is not None
        thread, self._thread = self._thread, None
        thread.shutdown()
        if error is None:
            self.wait()
        self._waiting.clear()

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a checkpoint as `save_checkpoint` does, now or soon."""
        if self._thread is None:
            save_checkpoint(path, content)
            return
        self._wait_until_at_most(_AT_ONCE - 1)
        self._waiting.append(self._thread.submit(save_checkpoint, path, copied(content)))

    def wait(self) -> None:
        """Return when everything is written."""
        self._wait_until_at_most(0)

    def _wait_until_at_most(self, n: int) -> None:
        while len(self._waiting) > n:
            self._waiting.popleft().result()
