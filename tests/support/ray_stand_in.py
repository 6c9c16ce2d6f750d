"""A stand-in for Ray that carries nothing out, for tests of what is asked of it."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

from recbole_perpeft.core.processes import ray_session


class LostError(Exception):
    """Stands for Ray's errors."""


def raised_or(answer):
    """What `ray.get` does with an answer."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def stand_in_for_ray(monkeypatch, n_cpus, seen, **parts):
    """Puts it in the place of Ray, as a cluster of one machine without GPUs.

    Args:
        monkeypatch: of the test.
        n_cpus: of the machine.
        seen: notes the `address` that is joined, and in `ended` those that are left again.
        parts: of the module `ray`, by name; errors beside `RayError` as `errors`.
    """
    errors = parts.pop("errors", {})
    nodes = [{"Alive": True, "NodeManagerHostname": "one", "Resources": {"CPU": float(n_cpus)}}]
    stand_in = SimpleNamespace(
        exceptions=SimpleNamespace(RayError=LostError, **errors),
        nodes=lambda: nodes,
        cluster_resources=lambda: {"CPU": float(n_cpus), "GPU": 0.0},
        **parts,
    )

    @contextmanager
    def running_ray(address):
        seen.address = address
        yield
        seen.ended.append(address)

    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setattr(ray_session, "running_ray", running_ray)
