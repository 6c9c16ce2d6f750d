"""Plots of a search and the importance of its parameters."""

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.studies.search.page import _axis, parameter_importance
from recbole_perpeft.studies.search.space import read_space


def test_an_axis_shows_numbers_in_order_and_what_is_not_set_below_them():
    axis = _axis("r", pd.Series([8, None, 16, 4], dtype=object), False)
    assert axis["ticktext"] == ["not set", "4", "8", "16"]
    assert axis["values"][1] == axis["tickvals"][0] < min(axis["values"][0], *axis["values"][2:])
    axis = _axis("rate", pd.Series([1e-4, 1e-2, 1e-3]), True)
    assert axis["values"] == pytest.approx([-4, -2, -3])
    axis = _axis("kind", pd.Series(["b", None, "a", "b"]), False)
    assert (axis["values"], axis["ticktext"]) == ([1, 2, 0, 1], ["a", "b", "not set"])
    assert _axis("same", pd.Series([1, 1]), False)["values"] == [0, 0]


def test_importance_finds_what_the_score_depends_on(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "rate: {uniform: [0, 1]}\nkind: {choice: [x, y]}\nidle: {uniform: [0, 1]}\nrank: {choice: [1, 2]}\n"
    )
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"rate": generator.random(60), "idle": generator.random(60)})
    table["kind"] = generator.choice(["x", "y"], 60)
    table["rank"] = [None, 1, 2] * 20
    table["score"] = table["rate"] + 0.3 * (table["kind"] == "x")
    table["has_model"] = True
    space = read_space(tmp_path / "s.yaml")
    importance = parameter_importance(table, space)
    assert list(importance)[:2] == ["rate", "kind"]
    assert sum(importance.values()) == pytest.approx(1)
    assert importance["idle"] < 0.05 and importance["rank"] < 0.05
    assert parameter_importance(table.head(5), space) == {}
    assert parameter_importance(table.assign(score=0.5), space) == {}
