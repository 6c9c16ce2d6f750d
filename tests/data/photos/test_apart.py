"""Work that hangs, crashes or takes all memory ends its child process, and one sentence says so."""

import os
import time

import pytest

from recbole_perpeft.data.photos.apart import Apart, ApartError


@pytest.fixture(scope="module")
def apart():
    return Apart(0.5, 2**28)


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (time.sleep, 60, "takes longer than 0.5 seconds"),
        (bytes, 2**40, "takes more than 256 MiB of memory"),
        (os._exit, 3, r"ends the process that does it \(exit status 3\)"),
    ],
)
def test_what_becomes_of_the_child_is_told_and_the_next_call_is_answered(apart, function, argument, message):
    with pytest.raises(ApartError, match=message):
        apart(function, argument)
    assert apart(divmod, 7, 3) == (2, 1)


def test_an_error_of_the_function_is_raised_and_the_child_stays(apart):
    child = apart(os.getpid)
    with pytest.raises(ValueError, match="invalid literal"):
        apart(int, "x")
    assert apart(os.getpid) == child != os.getpid()


def test_of_an_interrupted_call_nothing_comes_to_the_next(apart, monkeypatch):
    def interrupted(connection):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("recbole_perpeft.data.photos.apart._receive", interrupted)
        apart(divmod, 7, 2)
    assert apart(divmod, 7, 3) == (2, 1)
