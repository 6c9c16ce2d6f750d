"""Values of wrong types, in settings and in files of settings: one short sentence."""

import datetime
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError, shown
from recbole_perpeft.core.run_settings import RecBoleSettings
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.core.yaml_values import parse_value, read_yaml
from recbole_perpeft.runs.config import Config

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(datetime.date(2026, 1, 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
KEYS = [each.name for each in RecBoleSettings.declared()]


@given(st.dictionaries(st.sampled_from(KEYS), ANY, max_size=4))
@settings(max_examples=50)
def test_a_key_of_recbole_is_of_its_type_or_refused(values):
    try:
        checked = settings_from(values, RecBoleSettings)
    except PerPEFTError as error:
        assert any(str(error).startswith(f"{key} is ") for key in values) and len(str(error)) < 500
        return
    assert isinstance(checked.metrics, str | list) and isinstance(checked.USER_ID_FIELD, str)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", 3),
        ("metrics", [1]),
        ("metrics", {1: 2}),
        ("topk", "x"),
        ("topk", [[1]]),
        ("topk", {"a": 1}),
        ("plugin", 3),
        ("eval_args", "RO"),
        ("train_neg_sample_args", 3),
        ("world_size", "two"),
        ("USER_ID_FIELD", 3),
        ("alias_of_user_id", 3),
        ("worker", 2000),
    ],
)
def test_a_setting_names_what_it_must_be(toy_settings, key, value):
    with pytest.raises(PerPEFTError, match=f"^{key} is .*: it must be "):
        Config("SASRec", config_dict=toy_settings | {key: value})


def test_a_log_that_is_not_installed(toy_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PerPEFTError, match=r"pip install 'recbole-perpeft\[wandb\]'"):
        Config("BPR", config_dict=toy_settings | {"log_wandb": True})


@pytest.mark.parametrize(
    "value", ["x" * 10**6, list(range(10**6)), 10**5000, {str(n): n for n in range(10**5)}], ids=type
)
def test_long_values_are_shortened(value):
    assert len(shown(value)) < 400
    with pytest.raises(PerPEFTError) as error:
        settings_from({"repeatable": value}, RecBoleSettings)
    assert len(str(error.value)) < 500


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize(
    "text",
    [ALIASES, "a: &a [*a]", "a: " + "[" * 5000, "n: " + "9" * 9999],
)
def test_files_that_are_no_settings(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(PerPEFTError, match=r"a\.yaml is not valid YAML: ") as error:
        read_yaml(tmp_path / "a.yaml")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("date", ["2026-13-45", "2026-01-01 99:00:00", "2026-01-31"])
def test_what_looks_like_a_date_stays_text(tmp_path, date):
    (tmp_path / "a.yaml").write_text(f"day: {date}")
    assert read_yaml(tmp_path / "a.yaml") == {"day": date}
    assert parse_value("x", f"[{date}]") == [date]


def test_aliases_that_stay_small_are_welcome(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2]}
