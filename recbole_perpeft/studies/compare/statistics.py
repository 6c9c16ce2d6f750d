"""Metrics of single users from ranks, and tests of differences between two models over users."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy import stats

_NAME = re.compile(r"(?P<metric>[a-z]+)@(?P<cut>\d+)")


def _hit(ranks: np.ndarray) -> np.ndarray:
    return np.ones_like(ranks, dtype=np.float64)


def _ndcg(ranks: np.ndarray) -> np.ndarray:
    return 1 / np.log2(ranks + 1.0)


def _mrr(ranks: np.ndarray) -> np.ndarray:
    return 1.0 / ranks


# With one target a row; precision is divided by the cut as well.
_OF_RANK: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"hit": _hit, "recall": _hit, "precision": _hit, "ndcg": _ndcg, "mrr": _mrr, "map": _mrr}
)


def is_rank_metric(name: str) -> bool:
    """Whether a metric such as `ndcg@20` follows from the rank of the target."""
    found = _NAME.fullmatch(name.lower())
    return found is not None and found["metric"] in _OF_RANK


def metric_of_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """A metric for rows with one target each, as RecBole defines it.

    Args:
        name: `hit@k`, `recall@k`, `precision@k`, `ndcg@k`, `mrr@k` or `map@k`.
        ranks: int [n], 1 for the best.

    Returns:
        float64 [n].

    Raises:
        KeyError: the metric does not follow from the rank.
    """
    if not is_rank_metric(name):
        raise KeyError(name)
    metric, cut = name.lower().split("@")
    values = np.where(ranks <= int(cut), _OF_RANK[metric](ranks), 0.0)
    return values / int(cut) if metric == "precision" else values


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction for several comparisons: the chance of any false finding stays below the level.

    Args:
        p_values: [m] p-values of one family of tests.

    Returns:
        float64 [m], adjusted p-values, at most 1. Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
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
    differences = model - baseline
    if not differences.any():
        return PairedTest(0.0, 1.0, 1.0)
    p_t = 1.0 if len(differences) < 2 else _p_of_t(differences)
    return PairedTest(float(differences.mean()), p_t, float(stats.wilcoxon(differences).pvalue))


def _p_of_t(differences: np.ndarray) -> float:
    if np.ptp(differences) == 0:  # everybody gains the same; the statistic is infinite
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
