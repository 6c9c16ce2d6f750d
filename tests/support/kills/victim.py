"""Commands in processes of their own, forked from one that has imported all that takes seconds, and their end."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil
import pytest

from recbole_perpeft.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
# What takes seconds to import, so that not every process does.
_IMPORTED = (
    *("recbole_perpeft.studies.compare.comparison", "recbole_perpeft.studies.search.session", "peft", "torch._dynamo"),
    *("recbole_perpeft.models.perpeft.model", "recbole_perpeft.models.vip5.model", "sklearn.cluster"),
    *("transformers.models.clip.modeling_clip", "transformers.models.t5.modeling_t5", "joblib.externals.loky"),
)
SECONDS_TO_END = 600  # of a busy machine


def obey(words: Sequence[str], log: Path) -> None:
    """The command line in a session of its own, by which all that it starts is found.

    After the signal SIGUSR2 (the first one is taken by Ray Tune) it is killed as soon as it writes a file.
    """
    os.setsid()
    signal.signal(signal.SIGUSR2, lambda *_: sys.addaudithook(_killed_in_a_write))
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(main(words))


def _killed_in_a_write(event: str, arguments: tuple) -> None:
    """When a draft is opened or gets its name: half of the times at once, half by a child, a moment later."""
    global _is_dying
    if event in ("open", "os.rename") and str(arguments[0]).endswith(".draft") and not _is_dying:
        _is_dying = True
        victim, drawn = os.getpid(), Random(os.urandom(8))  # the global generator belongs to the training
        if drawn.random() < 0.5:
            os.kill(victim, signal.SIGKILL)
        if os.fork() == 0:
            time.sleep(drawn.random() / 1000)
            os.kill(victim, signal.SIGKILL)
            os._exit(0)


_is_dying = False


class Victim:
    """A command under way.

    Args:
        words: of the command line.
        log: file for what it prints.
    """

    def __init__(self, words: Sequence[str], log: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *_IMPORTED])
        self.log = log
        self.process = context.Process(target=obey, args=(list(words), log))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process.exitcode is None

    def kill(self) -> None:
        """At once."""
        self.process.kill()

    def kill_in_a_write(self) -> None:
        """As soon as it writes a file."""
        if self.runs:
            os.kill(self.pid, signal.SIGUSR2)

    def kill_worker(self, line: str, rng: Random) -> bool:
        """Kill a process that it has started, as soon as there is one; whether there was one.

        Args:
            line: what its command line holds.
            rng: draws one of several.
        """
        while self.runs:
            workers = [each for each in self.session() if each.pid != self.pid and line in _line(each)]
            if workers:
                rng.choice(workers).kill()
                return True
            time.sleep(0.02)
        return False

    def status(self) -> int:
        """Of its exit."""
        self.process.join(SECONDS_TO_END)
        if self.runs:
            self.process.kill()
            self.process.join()
            pytest.fail(f"longer than {SECONDS_TO_END} s: {self.said()}", pytrace=False)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def session(self) -> list[psutil.Process]:
        """It and all that it has started and that still runs, whoever their parent is by now."""
        found = []
        for each in psutil.process_iter():
            try:
                if os.getsid(each.pid) == self.pid and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def left(self, seconds: float = 60) -> list[psutil.Process]:
        """What does not end with it, at once or soon; it is killed then."""
        deadline = time.monotonic() + seconds
        while (processes := self.session()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in processes:
            process.kill()
        return processes

    def said(self) -> str:
        """The end of what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-1500:] if self.log.exists() else ""


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def left_alone(words: Sequence[str], place: Path, marks: str) -> float:
    """The command undisturbed; seconds of CPU from when a path of the pattern `marks` is there to the end."""
    victim = Victim(words, place.with_suffix(".log"))
    clock = Clock(victim.pid, place, marks)
    while victim.runs:
        clock.read()
        time.sleep(clock.pause)
    assert victim.status() == 0, victim.said()
    return clock.seconds


class Clock:
    """Seconds of CPU that a process and those that it has started use: they are the same on a busy machine.

    Args:
        pid: of the process.
        place: its folder.
        marks: pattern of a path below the folder; when it is there, seconds begin.
    """

    def __init__(self, pid: int, place: Path, marks: str):
        self._process, self._place, self._marks = psutil.Process(pid), place, marks
        self._start: float | None = None
        self.seconds, self.pause = 0.0, 0.002

    def read(self) -> float:
        """Seconds until now; the last ones of a process that has ended."""
        if self._start is None and not has(self._place, self._marks):
            return 0.0
        try:
            processes = [self._process, *self._process.children(recursive=True)]
            used = sum(sum(each.cpu_times()[:4]) for each in processes)
        except psutil.Error:
            return self.seconds
        if self._start is None:
            self._start = used
        self.pause = 0.01 if len(processes) == 1 else 0.05
        self.seconds = max(self.seconds, used - self._start)
        return self.seconds


def has(place: Path, pattern: str) -> bool:
    return any(True for _ in place.glob(pattern))


@contextmanager
def importable() -> Iterator[None]:
    """Lets fresh processes find this package and that of the tests, and use one thread."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def drafts(place: Path) -> list[Path]:
    """Files that are being written."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(place)
        for name in names
        if name.startswith(".") and name.endswith(".draft")
    ]


SIGKILLED = -signal.SIGKILL
