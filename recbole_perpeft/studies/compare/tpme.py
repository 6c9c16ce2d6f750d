"""TPME: time, parameters and memory of a set of models in one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError

WEIGHTS = (0.45, 0.10, 0.45)


def tpme(
    seconds: Sequence[float],
    parameters: Sequence[float],
    memory: Sequence[float],
    weights: Sequence[float] = WEIGHTS,
) -> np.ndarray:
    """Training-time, Parameter and GPU Memory Efficiency of K models that are compared; lower is better.

    `a1 t' + a2 p' + a3 m'`, where `x' = (x - min) / (max - min)` over the K models, and 0 if all are alike. The score
    says nothing outside the set: another model in it changes all scores. Source: IISAN (SIGIR 2024), section 4.

    Args:
        seconds: [K] seconds of a training epoch.
        parameters: [K] trainable parameters.
        memory: [K] peak memory, in any unit.
        weights: `a1, a2, a3`, with the sum 1; by default the paper's.

    Returns:
        float64 [K], between 0 and 1.

    Raises:
        PerPEFTError: lengths differ, a number is not finite, or the weights do not add up to 1.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (seconds, parameters, memory)]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise PerPEFTError(f"TPME needs one number a model of each kind, not {[column.shape for column in columns]}")
    if not all(np.isfinite(column).all() for column in columns):
        raise PerPEFTError("TPME needs finite seconds, parameters and memory")
    if len(weights) != 3 or min(weights) < 0 or not np.isclose(sum(weights), 1):
        raise PerPEFTError(f"the weights of TPME are {tuple(weights)}: they must be three numbers with the sum 1")
    return sum(weight * _scaled(column) for weight, column in zip(weights, columns, strict=True))


def _scaled(values: np.ndarray) -> np.ndarray:
    lowest, span = values.min(initial=np.inf), np.ptp(values) if len(values) else 0.0
    return (values - lowest) / span if span > 0 else np.zeros_like(values)
