"""Modules of users' own projects."""

import sys
from importlib.metadata import EntryPoint

import pytest

from recbole_perpeft.core import plugins
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.plugins import check_recorded_plugins, load_plugins, plugin_names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two modules, as a program finds it that was not started from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "good_plugin.py").write_text("LOADED = True\n")
    (tmp_path / "bad_plugin.py").write_text("1 / 0\n")
    yield tmp_path
    sys.modules.pop("good_plugin", None)


def test_modules_of_the_working_directory_are_found(here):
    before = list(sys.path)
    assert load_plugins("good_plugin") == ("good_plugin",)
    assert sys.modules["good_plugin"].LOADED and sys.path == before


@pytest.mark.parametrize(
    "named, message",
    [
        ("bad_plugin", "plugin bad_plugin: ZeroDivisionError: division by zero"),
        ("missing_plugin", "plugin missing_plugin: ModuleNotFoundError"),
        ("folder/plugin.py", "is no name of a module"),
        ([3], "plugin: 3 is no name of a module"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(here, named, message):
    with pytest.raises(PerPEFTError, match=message):
        load_plugins(named)


def test_names_are_separated_by_commas_or_listed():
    assert plugin_names("a, b.c") == plugin_names(["a", "b.c"]) == ("a", "b.c")
    assert plugin_names(None) == ()


def test_a_record_does_not_choose_what_code_runs(here):
    with pytest.raises(PerPEFTError, match="runs/x was made with the plugin good_plugin: give --plugin=good_plugin"):
        check_recorded_plugins("good_plugin", None, "runs/x")
    check_recorded_plugins("good_plugin", ["good_plugin"], "runs/x")
    load_plugins("good_plugin")
    check_recorded_plugins("good_plugin", None, "runs/x")


def test_installed_projects_are_loaded_once_and_name_themselves_when_they_fail(here, monkeypatch):
    entries = [EntryPoint("mine", "good_plugin", plugins.GROUP)]
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == plugins.GROUP else [])
    plugins._load_installed.cache_clear()
    load_plugins()
    assert "good_plugin" in sys.modules
    entries.append(EntryPoint("broken", "bad_plugin", plugins.GROUP))
    load_plugins()
    plugins._load_installed.cache_clear()
    with pytest.raises(PerPEFTError, match=r"the installed plugin broken \(bad_plugin\) cannot be imported"):
        load_plugins()
    monkeypatch.undo()
    plugins._load_installed.cache_clear()
