"""Tests of differences between models over users, and TPME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recbole_perpeft.core.errors import PerPEFTError

TPME_WEIGHTS = (0.45, 0.10, 0.45)
_DIGITS = 12  # of a mean over seeds that mean something
_RESAMPLES, _SEED = 2000, 0
_MOST_AT_ONCE = 4_000_000  # counts of distinct values held at a time


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction for several comparisons: the chance of any false finding stays below the level.

    Args:
        p_values: [m] p-values of one family of tests.

    Returns:
        float64 [m], adjusted p-values, at most 1. Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same users.

    Attributes:
        difference: mean over users of the model's metric minus the baseline's.
        p_t: paired t-test, two-sided.
        p_wilcoxon: Wilcoxon's signed-rank test, two-sided; users without a difference are left out.
    """

    difference: float
    p_t: float
    p_wilcoxon: float


def paired_test(model: np.ndarray, baseline: np.ndarray) -> PairedTest:
    """Test whether a model differs from a baseline.

    Args:
        model: float64 [n_users], the metric of every user, averaged over seeds.
        baseline: the same of the baseline.

    Returns:
        Both p-values are 1 where no user has a difference.
    """
    # Means of thirds differ in their last bits, which would order users who gain the same.
    differences = np.round(model - baseline, _DIGITS)
    if not differences.any():
        return PairedTest(0.0, 1.0, 1.0)
    p_t = 1.0 if len(differences) < 2 else _p_of_t(differences)
    return PairedTest(float(differences.mean()), p_t, float(stats.wilcoxon(differences).pvalue))


def _p_of_t(differences: np.ndarray) -> float:
    if np.ptp(differences) == 0:  # everybody gains the same; the statistic is infinite
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def false_discovery(p_values: Sequence[float]) -> np.ndarray:
    """Correction that bounds the share of false findings among the findings, where Holm's bounds the chance of any.

    Args:
        p_values: [m] p-values of one family of tests.

    Returns:
        float64 [m], adjusted p-values. Source: Benjamini and Hochberg (1995), JRSS B 57.
    """
    return np.asarray(stats.false_discovery_control(np.asarray(p_values, dtype=np.float64)))


def interval_of_mean(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval (percentiles) of a mean.

    Resampling values is drawing how often each distinct value occurs, so that the cost is that of distinct values, of
    which metrics of ranks have few. The same values always give the same interval.

    Args:
        values: float64 [n].
        level: how often such intervals hold the mean.

    Returns:
        Lower and upper end; NaN for fewer than two values. Source: Efron and Tibshirani (1993), chapter 13.
    """
    if len(values) < 2:
        return np.nan, np.nan
    distinct, counts = np.unique(values, return_counts=True)
    generator, means = np.random.default_rng(_SEED), np.empty(_RESAMPLES)
    at_once = max(1, _MOST_AT_ONCE // len(distinct))
    for start in range(0, _RESAMPLES, at_once):
        part = means[start : start + at_once]
        part[:] = generator.multinomial(len(values), counts / len(values), len(part)) @ distinct / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def detectable_difference(differences: np.ndarray, level: float = 0.05, power: float = 0.8) -> float:
    """The least true difference of means that a paired test over these many users would find.

    Args:
        differences: float64 [n_users], a model's metric minus the baseline's.
        level: of the two-sided test.
        power: how often such a difference is found.

    Returns:
        `(z(1 - level / 2) + z(power)) * sd / sqrt(n)`, of the differences' standard deviation; NaN for fewer than two
        users. Source: Cohen (1988), Statistical Power Analysis, chapter 2.
    """
    if len(differences) < 2:
        return np.nan
    quantiles = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return float(quantiles * differences.std(ddof=1) / np.sqrt(len(differences)))


def tpme(
    seconds: Sequence[float],
    parameters: Sequence[float],
    memory: Sequence[float],
    weights: Sequence[float] = TPME_WEIGHTS,
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
    score = np.zeros_like(columns[0])
    for weight, column in zip(weights, columns, strict=True):
        score += weight * _scaled(column)
    return score


def _scaled(values: np.ndarray) -> np.ndarray:
    lowest, span = values.min(initial=np.inf), np.ptp(values) if len(values) else 0.0
    return (values - lowest) / span if span > 0 else np.zeros_like(values)
