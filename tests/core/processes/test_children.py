"""Processes end with the program that has started them, however that ends."""

import subprocess
import sys

import psutil
import pytest

from recbole_perpeft.core.processes.children import ended_with_this_program

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_processes_end_with_the_block(sleeper):
    with ended_with_this_program([psutil.Process(sleeper.pid)]):
        assert sleeper.poll() is None
    assert sleeper.wait(timeout=60) != 0


def test_a_process_that_is_gone_or_another_by_now_is_left_alone(sleeper):
    with subprocess.Popen(SLEEP) as process:
        gone = psutil.Process(process.pid)
        gone.create_time()
        process.kill()
    another = psutil.Process(sleeper.pid)
    another._create_time = another.create_time() - 1000
    with ended_with_this_program([gone, another]):
        pass
    assert sleeper.poll() is None


def test_processes_end_with_a_program_that_is_killed(sleeper):
    program = f"""
import psutil, time
from recbole_perpeft.core.processes.children import ended_with_this_program
with ended_with_this_program([psutil.Process({sleeper.pid})]):
    print("ready", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "ready\n"
        assert sleeper.poll() is None
        killed.kill()
    assert sleeper.wait(timeout=60) != 0
