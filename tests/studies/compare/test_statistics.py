import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare.statistics import (
    detectable_difference,
    false_discovery,
    holm,
    interval_of_mean,
    paired_test,
    tpme,
)
from recbole_perpeft.training.rank_metrics import is_rank_metric, metric_of_ranks

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


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_users_who_gain_the_same_in_other_seeds_share_a_rank(n_seeds):
    rng = np.random.default_rng(0)
    ours, theirs = (rng.random((n_seeds, 300)) < share for share in (0.35, 0.3))
    means = [sum(of_seed / n_seeds for of_seed in hits) for hits in (ours, theirs)]
    exact = stats.wilcoxon(ours.sum(0) - theirs.sum(0)).pvalue
    assert paired_test(*means).p_wilcoxon == pytest.approx(exact)


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


# Trainable parameters of FFT, Adapter, IISAN, LoRA and BitFit with BERT-base and ViT-base.
PARAMETERS = (194_897_216, 4_965_440, 4_113_877, 833_600, 412_736)


def test_tpme_of_a_worked_example():
    """Full fine-tuning is the worst and cached IISAN the best in time and memory: only its parameters count."""
    seconds, memory = (443, 380, 22, 350, 340), (47, 39, 3, 37, 37)
    scores = tpme(seconds, PARAMETERS, memory)
    assert scores[0] == pytest.approx(1.0)
    assert scores[2] == pytest.approx(0.0019, abs=5e-6)
    adapter = 0.45 * (380 - 22) / (443 - 22) + 0.10 * 0.0234 + 0.45 * (39 - 3) / (47 - 3)
    assert scores[1] == pytest.approx(adapter, abs=1e-5)


def test_tpme_depends_on_the_compared_set():
    alone = tpme((10, 20), (1, 2), (5, 6))
    with_third = tpme((10, 20, 100), (1, 2, 3), (5, 6, 7))
    assert alone[1] == 1 and with_third[1] < 0.5


@pytest.mark.parametrize("n_models", [1, 3])
def test_what_is_alike_counts_nothing(n_models):
    same = [7.0] * n_models
    assert tpme(same, same, same).tolist() == [0.0] * n_models
    assert tpme([], [], []).tolist() == []


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), min_size=2, max_size=9))
def test_tpme_is_between_zero_and_one_as_by_the_formula(models):
    columns = list(zip(*models, strict=True))
    scores = tpme(*columns)
    for place, model in enumerate(models):
        expected = 0.0
        for weight, column, value in zip((0.45, 0.10, 0.45), columns, model, strict=True):
            if max(column) > min(column):
                expected += weight * (value - min(column)) / (max(column) - min(column))
        assert scores[place] == pytest.approx(expected, abs=1e-12)
    assert (scores >= 0).all() and (scores <= 1 + 1e-12).all()


@pytest.mark.parametrize(
    ("columns", "weights", "message"),
    [
        (((1, 2), (1, 2), (1,)), (0.45, 0.1, 0.45), "one number a model"),
        (((1, np.nan), (1, 2), (1, 2)), (0.45, 0.1, 0.45), "finite"),
        (((1, 2), (1, 2), (1, 2)), (0.5, 0.5, 0.5), "sum 1"),
        (((1, 2), (1, 2), (1, 2)), (1.5, -0.5, 0.0), "sum 1"),
    ],
)
def test_bad_input_of_tpme(columns, weights, message):
    with pytest.raises(PerPEFTError, match=message):
        tpme(*columns, weights)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_false_discovery_equals_its_definition(p_values):
    adjusted = false_discovery(p_values)
    ordered = sorted(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        steps = [ordered[i] * len(p_values) / (i + 1) for i in range(len(p_values)) if ordered[i] >= p]
        assert found == pytest.approx(min([1.0, *steps]))
    assert (adjusted <= holm(p_values) + 1e-12).all()


@pytest.mark.parametrize("n_distinct", [3, 200])
def test_an_interval_is_that_of_drawing_users(n_distinct):
    values = np.random.default_rng(3).integers(0, n_distinct, 200) / n_distinct
    low, high = interval_of_mean(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1)
    expected, width = theirs.confidence_interval, np.ptp(theirs.confidence_interval)
    assert [low, high] == pytest.approx(list(expected), abs=0.1 * width)
    assert interval_of_mean(values) == (low, high)
    assert np.isnan(interval_of_mean(values[:1])).all() and interval_of_mean(np.ones(4)) == (1.0, 1.0)


def test_a_difference_that_is_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (600, 150))
    shift = detectable_difference(noise[0] / noise[0].std(ddof=1) * 0.3)
    assert np.isclose(shift, 2.8016 * 0.3 / np.sqrt(150), rtol=1e-3)
    found = stats.ttest_1samp(noise + shift, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.05)
    assert np.isnan(detectable_difference(np.zeros(1)))
