import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare.tpme import tpme

# Trainable parameters of FFT, Adapter, IISAN, LoRA and BitFit with BERT-base and ViT-base.
PARAMETERS = (194_897_216, 4_965_440, 4_113_877, 833_600, 412_736)


def test_worked_example():
    """Full fine-tuning is the worst and cached IISAN the best in time and memory: only its parameters count."""
    seconds, memory = (443, 380, 22, 350, 340), (47, 39, 3, 37, 37)
    scores = tpme(seconds, PARAMETERS, memory)
    assert scores[0] == pytest.approx(1.0)
    assert scores[2] == pytest.approx(0.0019, abs=5e-6)
    adapter = 0.45 * (380 - 22) / (443 - 22) + 0.10 * 0.0234 + 0.45 * (39 - 3) / (47 - 3)
    assert scores[1] == pytest.approx(adapter, abs=1e-5)


def test_it_depends_on_the_compared_set():
    alone = tpme((10, 20), (1, 2), (5, 6))
    with_third = tpme((10, 20, 100), (1, 2, 3), (5, 6, 7))
    assert alone[1] == 1 and with_third[1] < 0.5


@pytest.mark.parametrize("n_models", [1, 3])
def test_what_is_alike_counts_nothing(n_models):
    same = [7.0] * n_models
    assert tpme(same, same, same).tolist() == [0.0] * n_models
    assert tpme([], [], []).tolist() == []


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), min_size=2, max_size=9))
def test_between_zero_and_one_as_by_the_formula(models):
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
def test_bad_input(columns, weights, message):
    with pytest.raises(PerPEFTError, match=message):
        tpme(*columns, weights)
