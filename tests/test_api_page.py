"""The page on the Python interface says what is true: its examples run, and it names everything that is public."""

import re
from pathlib import Path

import pytest

import recbole_perpeft
from support.attack.ground import runs_here

pytestmark = pytest.mark.long

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_examples_run_from_top_to_bottom(tmp_path, monkeypatch, capsys, small_aspects):
    """On a small data set of the same name, which lies where one of a user would."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_atomic").symlink_to(small_aspects)
    names = {"__name__": "page"}
    with runs_here():
        for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(compile(example, "docs/api.md", "exec"), names)
    assert names["dataset"].item_num <= 81
    assert "unknown setting 'n_gruops', did you mean 'n_groups'?" in capsys.readouterr().out


def test_every_public_name_is_shown():
    assert sorted(recbole_perpeft.__all__) == list(recbole_perpeft.__all__)
    missing = [name for name in recbole_perpeft.__all__ if f"rp.{name}" not in PAGE]
    assert not missing
