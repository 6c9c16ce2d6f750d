"""The page on the Python interface says what is true: its examples run, and it names everything that is public."""

import re
from pathlib import Path

import recbole_perpeft

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_examples_run_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(example, "docs/api.md", "exec"), names)
    assert "unknown setting 'n_gruops', did you mean 'n_groups'?" in capsys.readouterr().out


def test_every_public_name_is_shown():
    assert sorted(recbole_perpeft.__all__) == list(recbole_perpeft.__all__)
    missing = [name for name in recbole_perpeft.__all__ if f"rp.{name}" not in PAGE]
    assert not missing
