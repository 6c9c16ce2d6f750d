"""How Ray is started or joined; the size of the object store."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.core.processes.ray_session import running_ray, store_size

MB = 2**20


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
