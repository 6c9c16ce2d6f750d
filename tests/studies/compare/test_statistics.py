import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_perpeft.studies.compare.statistics import holm, is_rank_metric, metric_of_ranks, paired_test

RANKS = np.array([1, 2, 3, 10, 11, 500])
OF_ONE = {
    "hit": lambda rank, cut: 1.0,
    "recall": lambda rank, cut: 1.0,
    "precision": lambda rank, cut: 1 / cut,
    "ndcg": lambda rank, cut: 1 / math.log2(rank + 1),
    "mrr": lambda rank, cut: 1 / rank,
    "map": lambda rank, cut: 1 / rank,
}


@pytest.mark.parametrize("cut", [1, 3, 10])
@pytest.mark.parametrize("metric", list(OF_ONE))
def test_metrics_of_ranks(metric, cut):
    expected = [OF_ONE[metric](rank, cut) if rank <= cut else 0.0 for rank in RANKS.tolist()]
    np.testing.assert_allclose(metric_of_ranks(f"{metric}@{cut}", RANKS), expected)
    assert is_rank_metric(f"{metric.upper()}@{cut}")


@pytest.mark.parametrize("name", ["itemcoverage@10", "auc", "ndcg", "giniindex@5"])
def test_other_metrics_do_not_follow_from_ranks(name):
    assert not is_rank_metric(name)
    with pytest.raises(KeyError):
        metric_of_ranks(name, RANKS)


def naive_holm(p_values):
    """Multiply the k-th smallest by the number of hypotheses that are left; never below an earlier one."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, p_values[place] * (len(p_values) - done))
        adjusted[place] = min(highest, 1.0)
    return adjusted


def test_holm_of_a_textbook_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_the_loop(p_values):
    np.testing.assert_allclose(holm(p_values), naive_holm(p_values))


def test_paired_tests_are_those_of_scipy():
    rng = np.random.default_rng(3)
    baseline = rng.random(200)
    model = baseline + rng.normal(0.05, 0.3, 200)
    result = paired_test(model, baseline)
    assert result.difference == pytest.approx(np.mean(model - baseline))
    assert result.p_t == pytest.approx(stats.ttest_rel(model, baseline).pvalue)
    assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(model, baseline).pvalue)
    assert paired_test(baseline, model).p_t == pytest.approx(result.p_t)


def test_models_without_a_difference():
    values = np.array([0.0, 0.5, 1.0])
    result = paired_test(values, values)
    assert (result.difference, result.p_t, result.p_wilcoxon) == (0.0, 1.0, 1.0)


def test_the_same_gain_for_everybody_and_a_single_user():
    assert paired_test(np.full(9, 0.5), np.zeros(9)).p_t == 0.0
    assert paired_test(np.array([0.5]), np.zeros(1)).p_t == 1.0


def test_no_difference_is_seldom_significant():
    rng = np.random.default_rng(0)
    p_values = [paired_test(*rng.random((2, 80))).p_t for _ in range(300)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
