"""Values of one setting: bounds, steps, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.search.distributions import distribution


def drawn(kind, values, n=4000):
    generator = np.random.default_rng(0)
    described = distribution(kind, values, "space")
    return np.array([described.draw(generator) for _ in range(n)])


@given(st.floats(-100, 100), st.floats(0.001, 100), st.integers(0, 2**16))
def test_uniform_stays_between_its_bounds(low, width, seed):
    value = distribution("uniform", [low, low + width], "space").draw(np.random.default_rng(seed))
    assert low <= value <= low + width


@given(st.floats(1e-6, 1.0), st.floats(1.1, 1e4), st.integers(0, 2**16))
def test_loguniform_stays_between_its_bounds(low, factor, seed):
    value = distribution("loguniform", [low, low * factor], "space").draw(np.random.default_rng(seed))
    assert low <= value <= low * factor


def test_the_logarithm_of_loguniform_is_uniform():
    logarithms = np.log10(drawn("loguniform", [1e-4, 1.0]))
    assert np.histogram(logarithms, bins=4, range=(-4, 0))[0] == pytest.approx([1000] * 4, abs=120)


def test_quniform_has_multiples_of_its_step_equally_often():
    values, counts = np.unique(drawn("quniform", [0.1, 0.5, 0.1]), return_counts=True)
    assert values.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert counts == pytest.approx([800] * 5, abs=110)


def test_quniform_of_whole_numbers_has_whole_numbers():
    values = distribution("quniform", [16, 64.0, 16], "space").all_values()
    assert values == (16, 32, 48, 64)
    assert all(type(value) is int for value in values)


def test_randint_leaves_out_its_upper_bound():
    assert distribution("randint", [1, 4], "space").all_values() == (1, 2, 3)
    assert set(drawn("randint", [1, 4], 200)) == {1, 2, 3}


@pytest.mark.parametrize("kind", ["choice", "grid"])
def test_choice_takes_values_of_any_type(kind):
    values = [None, True, 1, "a", [1, 2], {"r": 4}]
    assert distribution(kind, values, "space").all_values() == tuple(values)
    assert distribution(kind, values, "space").exhaustive is (kind == "grid")


def test_continuous_values_are_infinitely_many():
    assert distribution("uniform", [0, 1], "space").all_values() is None
    assert distribution("loguniform", [0.1, 1], "space").all_values() is None


@pytest.mark.parametrize(
    ("kind", "value", "clipped"),
    [("uniform", 1.2, 1.0), ("uniform", -3.0, 0.0), ("uniform", 0.4, 0.4), ("quniform", 0.61, 0.5)],
)
def test_clip_moves_values_to_where_they_may_be(kind, value, clipped):
    bounds = {"uniform": [0.0, 1.0], "quniform": [0.0, 1.0, 0.5]}[kind]
    assert distribution(kind, bounds, "space").clip(value) == clipped


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("logunifrom", [1, 2], "no distribution 'logunifrom'"),
        ("choice", [], "no values"),
        ("choice", [1, 2, 1], "has 1 twice"),
        ("choice", "abc", "needs a list"),
        ("uniform", [1, 1], "low must be below high"),
        ("uniform", [2, 1], "low must be below high"),
        ("uniform", [1], "needs \\[low, high\\]"),
        ("uniform", ["a", 2], "needs numbers"),
        ("uniform", [True, 2], "needs numbers"),
        ("uniform", [0, math.inf], "needs numbers"),
        ("loguniform", [0, 1], "above 0"),
        ("loguniform", [-1, 1], "above 0"),
        ("quniform", [0, 1], "step"),
        ("quniform", [0, 1, 0], "step"),
        ("quniform", [0, 1, 0.3], "not a multiple"),
        ("randint", [0.5, 4], "whole numbers"),
        ("randint", [1, 2], "nothing to choose"),
    ],
)
def test_impossible_values_are_refused(kind, values, message):
    with pytest.raises(PerPEFTError, match=message):
        distribution(kind, values, "space")


@pytest.mark.parametrize("kind", ["uniform", "loguniform", "quniform", "randint"])
@pytest.mark.parametrize("bound", ["x" * 9999, 10**400, None, [1], True, float("nan")])
def test_a_bound_is_a_number_that_can_be_computed_with(kind, bound):
    with pytest.raises(PerPEFTError, match=f"^here: {kind} needs numbers ") as error:
        distribution(kind, [1, bound, 1][: 3 if kind == "quniform" else 2], "here")
    assert len(str(error.value)) < 400
