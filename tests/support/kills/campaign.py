"""Kills programs, lets them be finished, and judges whether anything differs from what was left alone."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from support.kills.programs import Ends, Program
from support.kills.victim import SIGKILLED, Clock, Victim, drafts, has, left_alone

IN_A_WRITE = 0.4  # share of the kills that wait for a file to be written
AGAIN = 0.25  # of those that are killed once more when they go on
_LITTER = ("*.draft", "*.partial", "*.outdated", "*.old", "*.spool")


@dataclass
class Tally:
    """How many kills of a program ended how."""

    name: str
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ("kills", "within a write", "too late", "faults")
        return f"{self.name}: " + ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds)


class Campaign:
    """Kills of one program.

    Args:
        name: of the program.
        program: how it is started, and what it must end with.
        root: an empty folder.
    """

    def __init__(self, name: str, program: Program, root: Path):
        self.program, self._root, self.tally = program, root, Tally(name)
        alone = root / "alone"
        alone.mkdir()
        self.seconds = left_alone(program.words(alone), alone, program.marks)
        self.ends, self._hidden = program.ends(alone), _hidden(alone)

    def carry_out(self, numbers: Sequence[int], seed: int) -> Tally:
        """Kill once for each number; the moment is drawn from the seed, the program and the number alone."""
        for number in numbers:
            place = self._root / str(number)
            place.mkdir()
            fault = self._one(place, Random(f"{seed} {self.tally.name} {number}"))
            if fault:
                self.tally.counts["faults"] += 1
                self.tally.faults.append(f"{self.tally.name} {number}: {fault}\n    {place}")
            else:
                shutil.rmtree(place)
        return self.tally

    def _one(self, place: Path, rng: Random) -> str:
        """Kill a program once or twice, and finish it; what is wrong, or nothing."""
        moments = []
        for is_second in range(1 + (rng.random() < AGAIN)):
            victim = self._start(place)
            moments.append(self._kill(victim, place, rng, bool(is_second)))
            left = victim.left()
            if left:
                return f"{moments}: left running: {left}"
            if victim.status() not in (SIGKILLED, *self.program.statuses):
                return f"{moments}: ended with {victim.status()}: {victim.said()}"
        last = self._start(place)
        if last.status() != 0:
            return f"{moments}: does not go on: status {last.status()}: {last.said()}"
        if left := last.left():
            return f"{moments}: left running at the end: {left}"
        ends = self.program.ends(place)
        wrong = differences(ends, self.ends) or sorted(_hidden(place) - self._hidden)
        return f"{moments}: {len(wrong)} differ: {', '.join(wrong[:5])}" if wrong else ""

    def _start(self, place: Path) -> Victim:
        """The program, or what goes on with it."""
        program = self.program
        goes_on = program.resume is not None and has(place, program.begun)
        words = program.resume(place) if program.resume and goes_on else program.words(place)
        return Victim(words, place.with_suffix(".log"))

    def _kill(self, victim: Victim, place: Path, rng: Random, is_second: bool) -> str:
        """Kill within the time that the undisturbed program took; says when."""
        program, share, in_a_write = self.program, 0.95 * rng.random(), rng.random() < IN_A_WRITE
        clock = Clock(victim.pid, place, program.marks)
        while victim.runs and (clock.read() < share * self.seconds or not has(place, program.marks)):
            time.sleep(rng.random() * clock.pause)
        known = set(drafts(place)) if is_second else set()  # what the first kill has left
        if program.worker:
            late = not victim.kill_worker(program.worker, rng)
            victim.status()
        else:
            (victim.kill_in_a_write if in_a_write else victim.kill)()
            late = victim.status() != SIGKILLED
        written = [path for path in drafts(place) if path not in known]
        self.tally.counts["too late" if late else "kills"] += 1
        self.tally.counts["within a write"] += bool(written) and not late
        return f"after {share:.2f} of {self.seconds:.2f} s{', writing ' + written[0].name if written else ''}"


def differences(ends: Ends, expected: Ends) -> list[str]:
    """Names whose values differ, or that only one of both has."""
    return sorted(name for name in ends.keys() | expected.keys() if ends.get(name, ends) != expected.get(name, ends))


def _hidden(place: Path) -> set[str]:
    """What is half-written, or kept from view; Ray's state is its own."""
    found = {str(path.relative_to(place)) for pattern in (".*", *_LITTER) for path in place.rglob(pattern)}
    return {path for path in found if not path.startswith("out/ray")}
