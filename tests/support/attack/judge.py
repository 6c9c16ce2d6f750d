"""Runs the command line on a mutated input, within limits of time and memory, and judges how it ends."""

import io
import json
import logging
import math
import re
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.logs import LOGGER

SECONDS, MEGABYTES = 30, 1500
SECONDS_OF_WAITING = 300  # for what uses no processor, or gets none on a busy machine
NEVER_MORE_MEGABYTES = 4000  # what the machine is protected from


class Ending(NamedTuple):
    """How a command ended.

    Attributes:
        status: of the exit; -1 if something came through that ends the process.
        out: standard output.
        err: standard error.
        told: warnings of the log.
        problem: what no input may cause; empty if all is well.
    """

    status: int
    out: str
    err: str
    told: str
    problem: str

    @property
    def message(self) -> str:
        return self.err[self.err.find("error: ") :].strip()

    @property
    def folder(self) -> Path:
        """The run folder that the output names."""
        return Path(self.out.split("run folder: ")[1].splitlines()[0])

    def numbers(self) -> dict:
        """What a run found on the test items."""
        result = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return {name: result[name] for name in ("best_valid_result", "test_result", "epochs")}


class _TooLong(BaseException):
    """Nothing catches it but the judge."""


@contextmanager
def _alarm() -> Iterator[None]:
    """Ends what takes longer: in seconds of this process, which are the same on a busy machine."""
    used, start = time.process_time(), time.monotonic()

    def ring(*_: object) -> None:
        left = SECONDS - (time.process_time() - used)
        if left <= 0 or time.monotonic() - start > SECONDS_OF_WAITING:
            raise _TooLong
        signal.setitimer(signal.ITIMER_REAL, max(left, 1))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _little_memory() -> Iterator[None]:
    """Whoever asks for too much is refused, so that the machine lives on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + NEVER_MORE_MEGABYTES * 1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Largest resident size since it was forgotten, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000


def carry_out(words: Sequence[str], program: Callable[[Sequence[str]], int] = main) -> Ending:
    """Run a command; warnings are what they are outside tests: no errors."""
    out, err, told = io.StringIO(), io.StringIO(), io.StringIO()
    listener = logging.StreamHandler(told)
    listener.setLevel(logging.WARNING)
    LOGGER.addHandler(listener)
    status, problem = -1, ""
    _forget_the_peak()
    try:
        with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err), _alarm(), _little_memory():
            warnings.simplefilter("default")
            status = program(words)
    except _TooLong:
        problem = f"longer than {SECONDS} s"
    except BaseException as error:  # whatever comes through `main`
        problem = f"came through: {error!r}"
    finally:
        LOGGER.removeHandler(listener)
    if not problem and (peak := _peak()) > MEGABYTES:
        problem = f"{peak:.0f} MB"
    return Ending(status, out.getvalue(), err.getvalue(), told.getvalue(), problem)


def fault_of_error(ending: Ending, names: Sequence[str]) -> str:
    """What is wrong with how a command told an error; nothing if it is one clear line with one of the names."""
    if ending.problem:
        return ending.problem
    if ending.status != 2:
        return f"status {ending.status}: {ending.message}"
    if "Traceback" in ending.err or len(re.findall("^error: ", ending.err, re.MULTILINE)) != 1:
        return f"not one error: {ending.err}"
    if not all(line.startswith(("  ", "Mend the data")) for line in ending.message.splitlines()[1:]):
        return f"more than a line: {ending.message}"
    if not any(name in ending.message for name in names):
        return f"names nothing of the input: {ending.message}"
    return ""


def is_finite(numbers: dict) -> bool:
    """Whether metrics are numbers."""
    results = (numbers["best_valid_result"], numbers["test_result"])
    return all(math.isfinite(value) for result in results for value in result.values())


@dataclass
class Tally:
    """How many inputs of a kind ended how."""

    kind: str
    ends: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, number: int, what: str, end: str) -> None:
        """Count an input; `end` is `clear`, `right`, or what is wrong."""
        good = end in ("clear", "right")
        self.ends[end if good else "neither"] += 1
        if not good:
            self.faults.append(f"{self.kind} {number}, {what}\n    {end}")

    def __str__(self) -> str:
        counts = ", ".join(f"{self.ends[end]} {end}" for end in ("clear", "right", "neither"))
        return f"{self.kind}: {sum(self.ends.values())} inputs, {counts}"


def campaign(kind: str, numbers: Sequence[int], seed: int, attack: Callable[[Random, int], tuple[str, str]]) -> Tally:
    """Attack with many inputs.

    Args:
        kind: of the input.
        numbers: of the inputs; each is drawn from `seed`, the kind and its number alone.
        seed: of all.
        attack: makes an input and runs it; gives what it is and how it ended.
    """
    tally = Tally(kind)
    for number in numbers:
        tally.count(number, *attack(Random(f"{seed} {kind} {number}"), number))
    return tally
