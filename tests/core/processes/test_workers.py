"""Worker processes of builds and conversions."""

import os
import signal
import sys

import pytest

from recbole_perpeft.core.processes.workers import finished_tasks, process_pool


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_is_started_and_ends_with_its_parent():
    def signal_at_the_end_of_the_parent(_):
        import ctypes

        found = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(found))  # PR_GET_PDEATHSIG
        return found.value, os.environ["WORD"]

    def start(word):
        os.environ["WORD"] += word

    pool = process_pool(1, {"WORD": "hel"}, start, ("lo",))
    assert list(finished_tasks(pool, signal_at_the_end_of_the_parent, [None], 1)) == [(signal.SIGKILL, "hello")]
