"""Carrying out the runs of a comparison: each in its own process, several at a time, finished ones not again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes.children import child_environment
from recbole_perpeft.core.processes.workers import end_with_parent
from recbole_perpeft.core.whole import alone
from recbole_perpeft.runs.folder import RESULT_FILE, SETTINGS_FILE
from recbole_perpeft.runs.keys import model_keys
from recbole_perpeft.runs.record import DamagedFileError, RunRecord
from recbole_perpeft.runs.run import get_model, resume, run
from recbole_perpeft.studies.compare.jobs.plan import WITHOUT_EFFECT, Job

_WORKER = "recbole_perpeft.studies.compare.jobs.runs"  # this file as a program
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 10
_LINES_SHOWN = 3
PARENT_GONE = 3  # exit status


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        job: the run.
        error: what went wrong; None for a finished run.
        reused: whether it was finished before.
        damage: what was damaged of a run that was finished before, and is therefore done again.
    """

    job: Job
    error: str | None = None
    reused: bool = False
    damage: DamagedFileError | None = None

    def __str__(self) -> str:
        how = f"failed: {self.error}" if self.error else "finished before" if self.reused else "done"
        again = f"; run again, because {self.damage.path} was damaged: {self.damage.reason}" if self.damage else ""
        return f"{self.job}: {how}{again} ({self.job.folder})"


class Running(Protocol):
    """A run under way."""

    job: Job

    def has_ended(self) -> bool:
        """Whether it has."""
        ...

    def outcome(self) -> Outcome:
        """How it has ended."""
        ...

    def end(self) -> None:
        """Stop it."""
        ...


def carry_out_all(
    jobs: Iterable[Job],
    n_parallel: int | None = 1,
    when_done: Callable[[Outcome], None] = lambda outcome: None,
    start: Callable[[Job, DamagedFileError | None], Running] | None = None,
) -> list[Outcome]:
    """Carry out runs; one that fails does not stop the others.

    Args:
        jobs: the runs; those with one folder are one run.
        n_parallel: how many at a time. With several processes, each gets its share of the cores as threads, unless
            OMP_NUM_THREADS says otherwise. None starts all with `start`, and one process after the other without.
        when_done: called with every outcome as it comes.
        start: starts a run; by default a process of this machine.

    Returns:
        Outcomes in the order of the jobs.
    """
    jobs = list(jobs)
    by_folder: dict[Path, Outcome] = {}
    waiting = deque({job.folder: job for job in jobs}.values())
    if start is None:
        n_parallel = n_parallel or 1
        start = partial(_Process, n_parallel)
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and (n_parallel is None or len(running) < n_parallel):
                job = waiting.popleft()
                record = RunRecord(job.folder)
                damage = record.damage()
                if record.finished and damage is None:
                    by_folder[job.folder] = Outcome(job, reused=True)
                    when_done(by_folder[job.folder])
                else:
                    running.append(start(job, damage))
            for process in [process for process in running if process.has_ended()]:
                running.remove(process)
                by_folder[process.job.folder] = process.outcome()
                when_done(by_folder[process.job.folder])
            if running:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for process in running:
            process.end()
    outcomes = [by_folder[job.folder] for job in jobs]
    return [replace(outcome, job=job) for job, outcome in zip(jobs, outcomes, strict=True)]


class _Process:
    """A run under way."""

    def __init__(self, n_parallel: int, job: Job, damage: DamagedFileError | None):
        self.job, self._damage = job, damage
        self._messages: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=_environment(n_parallel),
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        self._orders, self._answers = self._process.stdin, self._process.stdout
        order = json.dumps({"folder": str(job.folder), "settings": job.settings, "parent": os.getpid()})
        try:
            self._orders.write(order.encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            pass  # it has ended already; its outcome says why

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> Outcome:
        answer = self._answers.read()
        status = self._process.returncode
        self._messages.seek(0)
        messages = self._messages.read().decode(errors="replace")
        self._close()
        try:
            error = json.loads(answer.splitlines()[-1])["error"]
        except (ValueError, IndexError):
            error = _sudden_end(status, messages)
        return ended(self.job, error, messages, self._damage)

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self._answers.close()
        self._messages.close()
        try:
            self._orders.close()
        except BrokenPipeError:
            pass


def ended(job: Job, error: str | None, messages: str, damage: DamagedFileError | None) -> Outcome:
    """The outcome of a run, whose error stands in a file beside its folder.

    Args:
        job: the run.
        error: what went wrong; None for a finished run.
        messages: what the run has said.
        damage: as in `Outcome`.
    """
    error_file = job.folder.with_name(f"{job.folder.name}.error.txt")
    if error is None:
        error_file.unlink(missing_ok=True)
    else:
        error_file.parent.mkdir(parents=True, exist_ok=True)
        error_file.write_text(f"{error}\n\n{messages}", encoding="utf-8")
    return Outcome(job, error, damage=damage)


def _sudden_end(status: int, messages: str) -> str:
    if status == -9:
        return "the process was killed (signal 9): most likely the machine had no memory left; lower --parallel"
    last_lines = " / ".join(messages.strip().splitlines()[-_LINES_SHOWN:])
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"the process ended with {how}: {last_lines}"


def _environment(n_parallel: int) -> dict[str, str]:
    environment = child_environment()
    if n_parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // n_parallel)))
    return environment


def work() -> int:
    """The program of a process: reads a job from standard input, and answers `{"error": message or null}`.

    It ends with its parent: it watches the other end of its standard input.

    Returns:
        Exit status.
    """
    job = json.loads(sys.stdin.readline())
    end_with_parent(job["parent"])
    threading.Thread(target=_end_with_parent, daemon=True).start()  # where the system does not see to it
    with redirect_stdout(sys.stderr):
        error = carry_out(Path(job["folder"]), job["settings"])
    print(json.dumps({"error": error}), flush=True)
    return 0 if error is None else 1


def carry_out(folder: Path, settings: dict[str, Any]) -> str | None:
    """Start the run, continue it, or find it finished; two processes never work on one run.

    A finished run with a damaged file is continued from its last checkpoint, which writes all files anew.

    Args:
        folder: the run folder.
        settings: all settings of the run.

    Returns:
        What went wrong; None if the run is finished.
    """
    try:
        with alone(folder.parent / ".locks" / folder.name):
            record = RunRecord(folder)
            if record.finished:
                if record.damage() is None:
                    return None
                (folder / RESULT_FILE).unlink()
            if (folder / SETTINGS_FILE).is_file():
                here = model_keys(get_model(settings["model"]), *WITHOUT_EFFECT)
                resume(folder, {key: settings[key] for key in here if key in settings})
            else:
                run(config_dict=settings | {"run_folder": str(folder)})
    except (PerPEFTError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # a fault in one model must not end the comparison; the parent lists it
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _end_with_parent() -> None:
    # Nothing more comes through the pipe: reading returns when the parent closes it, or is gone. Unbuffered, because
    # a thread that holds the lock of sys.stdin would not let the interpreter end.
    os.read(sys.stdin.fileno(), 1)
    os._exit(PARENT_GONE)


if __name__ == "__main__":
    sys.exit(work())
