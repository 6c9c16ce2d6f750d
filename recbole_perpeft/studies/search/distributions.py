"""Values that a search may give one setting."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError, shown

_STEP_TOLERANCE = 1e-9
_LARGEST = sys.float_info.max  # bounds are computed with as floats


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: what there is to choose from.
        exhaustive: whether a random search takes every value as often as the others (`grid`).
    """

    values: tuple[Any, ...]
    exhaustive: bool = False

    def draw(self, generator: np.random.Generator) -> Any:
        """A random value."""
        return self.values[generator.integers(len(self.values))]

    def all_values(self) -> tuple[Any, ...]:
        """All values there are."""
        return self.values

    def examples(self) -> tuple[Any, ...]:
        """Values that show whether all are possible."""
        return self.values

    def clip(self, value: Any) -> Any:
        """The value, moved to where it may be."""
        return value

    def for_ray(self) -> Any:
        """The distribution of Ray Tune."""
        from ray import tune

        return tune.choice(list(self.values))


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both possible.

    Attributes:
        low, high: the bounds.
        log: whether its logarithm is uniform, not the number itself.
        step: distance of the possible numbers, which begin at `low`; None if all numbers are possible.
        whole: whether it is an int.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def draw(self, generator: np.random.Generator) -> float:
        """A random value; with steps each of them is equally likely."""
        if self.step is not None:
            return self._at(int(generator.integers(self._n_steps() + 1)))
        if self.log:
            return self.clip(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return float(generator.uniform(self.low, self.high))

    def all_values(self) -> tuple[float, ...] | None:
        """All values there are; None if they are infinitely many."""
        return None if self.step is None else tuple(self._at(place) for place in range(self._n_steps() + 1))

    def examples(self) -> tuple[float, ...]:
        """Values that show whether all are possible."""
        return self._number(self.low), self._number(self.high)

    def clip(self, value: float) -> float:
        """The value, moved to where it may be."""
        value = min(max(value, self.low), self.high)
        return value if self.step is None else self._at(round((value - self.low) / self.step))

    def for_ray(self) -> Any:
        """The distribution of Ray Tune."""
        from ray import tune

        if self.step is None:
            return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)
        low, high, step = (*self.examples(), self._number(self.step))
        return tune.qrandint(int(low), int(high), int(step)) if self.whole else tune.quniform(low, high, step)

    def _n_steps(self) -> int:
        assert self.step is not None
        return round((self.high - self.low) / self.step)

    def _at(self, place: int) -> float:
        assert self.step is not None
        return self._number(self.low + place * self.step)

    def _number(self, value: float) -> float:
        # 0.1 + 2 * 0.1 must read 0.3 in a settings file.
        return round(value) if self.whole else float(f"{value:.12g}")


Distribution = Choice | Range


def distribution(kind: str, value: Any, where: str) -> Distribution:
    """A distribution from its description.

    | kind | value | |
    |---|---|---|
    | `choice` | `[a, b, ...]` | one of them |
    | `grid` | `[a, b, ...]` | each of them |
    | `uniform` | `[low, high]` | a number between |
    | `loguniform` | `[low, high]` | a number between, its logarithm uniform |
    | `quniform` | `[low, high, step]` | a multiple of step between, both bounds possible |
    | `randint` | `[low, high]` | a whole number from low to high - 1, as in Ray and NumPy |

    Args:
        kind: name of the distribution.
        value: its values or bounds.
        where: what messages begin with, such as file and setting.

    Raises:
        PerPEFTError: there is no such distribution, or it has no values.
    """
    if kind not in KINDS:
        raise PerPEFTError(f"{where}: there is no distribution {kind!r}; choose one of {', '.join(KINDS)}")
    if not isinstance(value, list | tuple):
        raise PerPEFTError(f"{where}: {kind} needs a list, not {shown(value)}")
    return KINDS[kind](kind, list(value), where)


def _choice(kind: str, values: list, where: str) -> Choice:
    if not values:
        raise PerPEFTError(f"{where}: {kind} has no values")
    # Not by equality: 1 is not True.
    repeated = [value for place, value in enumerate(values) if repr(value) in map(repr, values[:place])]
    if repeated:
        raise PerPEFTError(f"{where}: {kind} has {shown(repeated[0])} twice")
    return Choice(tuple(values), exhaustive=kind == "grid")


def _uniform(kind: str, values: list, where: str) -> Range:
    low, high = _bounds(kind, values, where, ("low", "high"))
    return Range(low, high)


def _loguniform(kind: str, values: list, where: str) -> Range:
    low, high = _bounds(kind, values, where, ("low", "high"))
    if low <= 0:
        raise PerPEFTError(f"{where}: {kind} has no logarithm of {low}: its bounds must be above 0")
    return Range(low, high, log=True)


def _quniform(kind: str, values: list, where: str) -> Range:
    low, high, step = _bounds(kind, values, where, ("low", "high", "step"))
    if step <= 0:
        raise PerPEFTError(f"{where}: the step of {kind} is {step}: it must be above 0")
    for bound in (low, high):
        if abs(bound / step - round(bound / step)) > _STEP_TOLERANCE:
            raise PerPEFTError(f"{where}: {bound} is not a multiple of the step {step}, as {kind} has them")
    return Range(low, high, step=step, whole=all(float(number).is_integer() for number in (low, high, step)))


def _randint(kind: str, values: list, where: str) -> Range:
    low, high = _bounds(kind, values, where, ("low", "high"))
    if not (float(low).is_integer() and float(high).is_integer()):
        raise PerPEFTError(f"{where}: {kind} has whole numbers as bounds, not {low} and {high}")
    if high - 1 <= low:
        raise PerPEFTError(f"{where}: {kind} from {low} to {high - 1} (high is excluded) has nothing to choose from")
    return Range(low, high - 1, step=1, whole=True)


def _bounds(kind: str, values: list, where: str, names: tuple[str, ...]) -> list[float]:
    expected = f"[{', '.join(names)}]"
    if len(values) != len(names):
        raise PerPEFTError(f"{where}: {kind} needs {expected}, not {shown(values)}")
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST:
            raise PerPEFTError(f"{where}: {kind} needs numbers {expected}, not {shown(number)}")
    if values[0] >= values[1]:
        raise PerPEFTError(f"{where}: {kind} goes from {values[0]} to {values[1]}: low must be below high")
    return values


KINDS: Mapping[str, Any] = {
    "choice": _choice,
    "grid": _choice,
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
    "randint": _randint,
}
