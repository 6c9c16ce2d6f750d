"""Where the lines of the log go."""

import errno
import logging
import os
import re

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER, SHORT_TIME, level_of, logged


@pytest.fixture
def root_without_handlers(monkeypatch):
    """Gives the root logger of a program without handlers; a test calls it, as pytest adds its own to every phase."""

    def root():
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        return root

    return root


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    theirs = tmp_path / "theirs"
    for target in (theirs, tmp_path / "missing"):
        theirs.write_text("mine")
        (tmp_path / "run.log").symlink_to(target)
        with pytest.raises(PerPEFTError, match=r"run\.log is a link, .* delete the link"):
            with logged(tmp_path / "run.log", "%(message)s"):
                LOGGER.info("ours")
        (tmp_path / "run.log").unlink()
    assert theirs.read_text() == "mine" and not (tmp_path / "missing").exists()


def test_file_and_terminal(root_without_handlers, tmp_path, capsys):
    root = root_without_handlers()
    before = root.level
    with logged(tmp_path / "a.log", "%(asctime)s %(levelname)s %(message)s"):
        LOGGER.info("ours")
        root.warning("\x1b[1;35mRecBole's\x1b[0m")
        LOGGER.debug("too much")
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO ours", "WARNING RecBole's"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO", lines[0])
    shown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d \w{3} \d\d:\d\d:\d\d INFO ours", shown[0]) and len(shown) == 2
    assert root.handlers == [] and root.level == before


def test_a_program_that_logs_itself_keeps_the_terminal(root_without_handlers, tmp_path, capsys):
    root = root_without_handlers()
    root.addHandler(logging.NullHandler())
    with logged(tmp_path / "a.log", "%(asctime)s|%(message)s", SHORT_TIME, logging.DEBUG):
        LOGGER.debug("ours")
    assert re.fullmatch(r"\d\d \w{3} \d\d:\d\d:\d\d\|ours\n", (tmp_path / "a.log").read_text())
    assert capsys.readouterr().err == "" and len(root.handlers) == 1


@pytest.mark.parametrize(("ending", "told"), [("it ends", ["it ends: a bug"]), (None, [])])
def test_an_error_is_told_to_the_file_alone(root_without_handlers, tmp_path, capsys, ending, told):
    root = root_without_handlers()
    with pytest.raises(RuntimeError), logged(tmp_path / "a.log", "%(message)s", ending=ending):
        raise RuntimeError("a bug")
    assert (tmp_path / "a.log").read_text().splitlines() == told
    assert capsys.readouterr().err == "" and root.handlers == []


def test_levels():
    assert level_of(None) == level_of("info") == logging.INFO and level_of("DEBUG") == logging.DEBUG
    with pytest.raises(PerPEFTError, match="state must be DEBUG, .*, not 'LOUD'"):
        level_of("LOUD")


def test_a_disk_that_takes_no_more_lines_is_told_once(capsys, monkeypatch, tmp_path):
    def full(handler):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(logging.FileHandler, "flush", full)
    with logged(tmp_path / "run.log", "%(message)s"):
        LOGGER.info("one")
        LOGGER.info("two")
    said = [line for line in capsys.readouterr().err.splitlines() if line not in ("one", "two")]
    assert said == [f"{tmp_path / 'run.log'} cannot be written any more: No space left on device"]
