"""Points of a search space, conditions, and the two file formats."""

import math

import numpy as np
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models import list_models
from recbole_perpeft.runs.config import Config, properties_folder
from recbole_perpeft.studies.search.checks import check_search
from recbole_perpeft.studies.search.searchers import make_sampling
from recbole_perpeft.studies.search.space import read_space, with_point

MODELS = (*list_models(), "SASRec")


@pytest.fixture
def space_of(tmp_path):
    def read(text, name="space.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_space(tmp_path / name)

    return read


CONDITIONAL = """
peft_type: {choice: [lora, ia3]}
rank: {choice: [4, 8, 16], when: {peft_type: lora}}
alpha: {choice: [1, 2], when: {rank: [8, 16]}}
"""


def test_distributions_and_fixed_values_are_told_apart(space_of):
    space = space_of("a: {uniform: [0, 1]}\nb: 3\nc: {inter: [x, y]}\ntopk: [5, 10]\n")
    assert [parameter.key for parameter in space.parameters] == ["a"]
    assert space.fixed == {"b": 3, "c": {"inter": ["x", "y"]}, "topk": [5, 10]}


def test_a_space_from_python():
    space = read_space({"a": {"choice": [1, 2]}, "b": 3})
    assert [parameter.key for parameter in space.parameters] == ["a"] and space.fixed == {"b": 3}
    with pytest.raises(PerPEFTError, match="the search space: a: choice has no values"):
        read_space({"a": {"choice": []}})


def test_a_parameter_without_its_condition_is_not_set(space_of):
    space = space_of(CONDITIONAL)
    point = {"peft_type": "ia3", "rank": 8, "alpha": 2}
    assert space.active(point, {}) == {"peft_type": "ia3"}
    assert space.active(point | {"peft_type": "lora"}, {}) == {"peft_type": "lora", "rank": 8, "alpha": 2}
    assert space.active(point | {"peft_type": "lora", "rank": 4}, {}) == {"peft_type": "lora", "rank": 4}


def test_a_condition_on_a_setting_that_is_not_searched_over(space_of):
    space = space_of("rank: {choice: [4, 8], when: {peft_type: lora}}")
    assert space.active({"rank": 4}, {"peft_type": "lora"}) == {"rank": 4}
    assert space.active({"rank": 4}, {"peft_type": "ia3"}) == {}


def test_a_grid_has_every_combination_that_differs_once(space_of):
    space = space_of(CONDITIONAL)
    active = [space.active(point, {}) for point in space.grid({})]
    assert len(active) == 1 + 1 + 2 * 2  # ia3, rank 4, ranks 8 and 16 with two alphas
    assert len({str(point) for point in active}) == len(active)


@pytest.mark.parametrize("values", ["{uniform: [0, 1]}", "{loguniform: [0.1, 1]}"])
def test_an_infinite_grid_is_refused(space_of, values):
    with pytest.raises(PerPEFTError, match="grid over a is infinite"):
        space_of(f"b: {{choice: [1]}}\na: {values}").grid({})


def test_a_grid_too_large_to_try_is_refused(space_of):
    keys = "".join(f"k{number}: {{randint: [0, 100]}}\n" for number in range(4))
    with pytest.raises(PerPEFTError, match="100,000,000 points"):
        space_of(keys).grid({})


def test_random_points_are_repeatable_and_different(space_of):
    space = space_of("a: {uniform: [0, 1]}\nb: {choice: [1, 2]}\n")
    points = space.draw(20, {}, seed=3)
    assert points == space.draw(20, {}, seed=3) != space.draw(20, {}, seed=4)
    assert len({point["a"] for point in points}) == 20


def test_a_small_space_is_not_searched_twice(space_of):
    points = space_of("a: {choice: [1, 2]}\nb: {choice: [x, y]}\n").draw(50, {}, seed=0)
    assert sorted((point["a"], point["b"]) for point in points) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_a_number_in_two_spellings_is_one_point(space_of):
    space = space_of("weight_decay: {choice: [0, 0.0, 0.1]}")
    assert len(space.draw(20, {"weight_decay": 0.0}, seed=0)) == 2


@pytest.mark.parametrize("seed", range(4))
def test_settings_as_they_are_are_tried_once(space_of, seed):
    space, defaults = space_of("a: {choice: [1, 2]}\nb: {choice: [x, y]}\n"), {"a": 1, "b": "x"}
    points = make_sampling("random", space, defaults, 4, "max", seed).param_space["point"]["grid_search"]
    assert sorted((point["a"], point["b"]) for point in points) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert points[0] == defaults


def test_random_points_go_through_a_grid_parameter(space_of):
    points = space_of("a: {uniform: [0, 1]}\nb: {grid: [1, 2, 3]}\n").draw(4, {}, seed=0)
    assert sorted(point["b"] for point in points) == [1] * 4 + [2] * 4 + [3] * 4
    assert len({point["a"] for point in points}) == 12


def test_the_point_of_the_settings_changes_nothing(space_of):
    space = space_of("a: {uniform: [0, 1]}\nd.x: {choice: [1, 2]}\nd.y: {choice: [1, 2]}\n")
    assert space.point_of({"a": 7.0, "d": {"x": 5}}) == {"a": 7.0, "d.x": 5}


def test_values_of_searchers_become_plain_numbers_that_the_space_has(space_of):
    space = space_of("a: {quniform: [0.0, 0.5, 0.1]}\nn: {randint: [1, 4]}\nu: {uniform: [0, 1]}\n")
    point = space.active({"a": np.float64(0.1 * 3), "n": np.float64(2.0), "u": np.float64(0.25)}, {})
    assert point == {"a": 0.3, "n": 2, "u": 0.25}
    assert [type(value) for value in point.values()] == [float, int, float]
    assert space.active({"a": 0.7, "n": 9}, {}) == {"a": 0.7, "n": 9}  # settings as they are may lie outside


def test_entries_of_a_dictionary_are_set_beside_the_others():
    fixed = {"model": "GlobalPEFT", "dataset": "aspects"}
    settings = with_point(fixed, {"peft_type": "lora", "peft_config.r": 4})
    assert settings["peft_config"] == {"lora_dropout": 0.0, "r": 4}  # the former is that of the data set
    settings = with_point(fixed, {"peft_type": "loha", "peft_config.r": 4})
    assert settings["peft_config"] == {"r": 4}  # what is meant for LoRA does not go along


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {logunifrom: [1, 2]}", "did you mean loguniform"),
        ("a: {choice: [1], uniform: [0, 1]}", "one distribution"),
        ("a: {choice: [1], whn: {b: 1}}", "one distribution"),
        ("a: {when: {b: 1}}", "no distribution"),
        ("a: {choice: [1], when: lora}", "when must be"),
        ("a: {choice: [1], when: {b: 2}}\nb: {choice: [2]}", "put b above"),
        ("b: {choice: [2]}\na: {choice: [1], when: {b: 3}}", "b is never 3"),
        ("a: 3", "searches over nothing"),
        ("", "searches over nothing"),
        ("a: [", "not valid YAML"),
        ("a: {choice: [1]}\n'': {choice: [2]}", "yaml, line 2: a key is empty or no text"),
        ("a: {choice: [1]}\n\nnull: {choice: [2]}", "yaml, line 3: a key is empty or no text"),
    ],
)
def test_what_cannot_be_meant_is_refused(space_of, text, message):
    with pytest.raises(PerPEFTError, match=message):
        space_of(text)


@pytest.mark.parametrize("key", ["", " ", None, 3])
def test_a_key_of_a_mapping_that_is_no_name_is_refused(key):
    with pytest.raises(PerPEFTError, match=f"the search space: the key {key!r} of entry 2 is no name of a setting"):
        read_space({"a": {"choice": [1]}, key: {"choice": [2]}})


def test_a_missing_file_is_refused(tmp_path):
    for name in ("none.yaml", "none.hyper"):
        with pytest.raises(PerPEFTError, match="cannot read"):
            read_space(tmp_path / name)


def test_recbole_text_format(space_of):
    text = """
learning_rate loguniform -8, 0
train_batch_size choice [64, 128]
# a comment
loss_type   choice ['BPR','CE']
hidden_dropout_prob uniform 0.0,0.5
n_layers quniform 1,3,1
"""
    space = space_of(text, "sasrec.hyper")
    by_key = {parameter.key: parameter.distribution for parameter in space.parameters}
    assert list(by_key) == ["learning_rate", "train_batch_size", "loss_type", "hidden_dropout_prob", "n_layers"]
    assert (by_key["learning_rate"].low, by_key["learning_rate"].high) == (math.exp(-8), 1.0)
    assert by_key["loss_type"].all_values() == ("BPR", "CE")
    assert by_key["n_layers"].all_values() == (1, 2, 3)
    assert (by_key["hidden_dropout_prob"].low, by_key["hidden_dropout_prob"].high) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate choice", "line 1"),
        ("a normal 0,1", "no distribution 'normal'"),
        ("a choice [__import__('os')]", "needs|choice"),
        ("a loguniform x,y", "natural logarithms"),
        ("a choice [1]\na choice [2]", "line 2: a is there twice"),
    ],
)
def test_wrong_lines_of_the_text_format_are_refused(space_of, line, message):
    if "import" in line:  # no code runs: it is text like any other
        assert space_of(line, "s.hyper").parameters[0].distribution.all_values() == ("__import__('os')",)
        return
    with pytest.raises(PerPEFTError, match=message):
        space_of(line, "s.hyper")


@pytest.mark.parametrize("presets", [[], ["strong"], ["strong", "annealed"]], ids=["as it is", "strong", "annealed"])
@pytest.mark.parametrize("model", MODELS)
def test_spaces_that_come_with_the_package_suit_their_models(model, presets):
    space = read_space(properties_folder() / "search" / f"{model}.yaml")
    assert len(space.parameters) >= (1 if model == "ContentKNN" else 8)  # which learns nothing
    check_search(
        space, Config(model, "aspects", presets).external_config_dict | {"model": model, "dataset": "aspects"}
    )
