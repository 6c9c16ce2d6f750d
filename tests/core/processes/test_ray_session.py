"""Processes end with the program that has started them, however that ends; the size of the object store."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.core.processes.children import ended_with_this_program
from recbole_perpeft.core.processes.ray_session import running_ray, store_size

MB = 2**20
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


def test_a_ray_of_this_machine_listens_to_it_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    for address, expected in ((None, "0"), ("auto", None)):
        with monkeypatch.context() as patched:
            patched.setattr("os.environ", {})
            with running_ray(address):
                assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == expected


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setattr("os.environ", dict(os.environ))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with (
            pytest.raises(PerPEFTError, match=f"cannot join the cluster at {address}: nothing answers"),
            running_ray(address),
        ):
            pass
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for address in (f"127.0.0.1:{listening.getsockname()[1]}", "auto", "ray://head"):
            ray_session._check_answers(address)


def test_the_object_store_is_small_unless_data_are_shipped():
    assert store_size(0, 16_000 * MB) == 160 * MB
    assert store_size(1000 * MB, 16_000 * MB) == 2000 * MB
    assert store_size(3000 * MB, 16_000 * MB) == int(0.3 * 16_000 * MB)
    with pytest.raises(PerPEFTError, match="leave out --ship_data"):
        store_size(8000 * MB, 16_000 * MB)
