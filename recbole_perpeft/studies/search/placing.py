"""How trials share the processors and GPUs of the machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs import cluster
from recbole_perpeft.studies.search.settings import SearchSettings

# Ray Train places the processes of a trial, in a group of its own that Ray Tune does not know of. What waits for them
# takes no processor from them; Ray Tune has no trial that needs nothing at all: it has a byte of memory.
_WAITS = {"memory": 1.0}


@dataclass(frozen=True)
class Placing:
    """Where trials have their place.

    Attributes:
        resources: what Ray Tune keeps for a trial.
        at_once: the largest number of trials at a time; 0 for as many as fit.
        settings: of the run of each trial, which say where it trains, and not what it learns.
    """

    resources: dict[str, float]
    at_once: int
    settings: dict[str, Any] = field(default_factory=dict)


def placing_of(settings: SearchSettings, uses_gpu: bool, n_trials: int) -> Placing:
    """The places that trials have on the machines of the Ray that runs.

    Args:
        settings: of the search.
        uses_gpu: whether trials may use GPUs.
        n_trials: of the search.

    Raises:
        PerPEFTError: the machines have no place for one trial, or too few for a population of them.
    """
    n, cpus, gpus = settings.devices_per_trial, settings.cpus, settings.gpus
    if gpus is None:
        gpus = 1.0 if uses_gpu and cluster.n_gpus() >= 1 else 0.0
    cluster.check_resources(cpus, gpus, "a trial" if n == 1 else "a process of a trial (devices_per_trial)", n)
    if n == 1:
        return Placing({"cpu": cpus, "gpu": gpus}, settings.max_concurrent)
    fitting = cluster.n_places(cpus, gpus) // n
    at_once = min(fitting, settings.max_concurrent or fitting)
    if settings.scheduler == "pbt" and at_once < n_trials:
        raise PerPEFTError(
            f"pbt with devices_per_trial trains all trials at a time, and of {n_trials} trials on {n} devices each "
            f"there is a place for {at_once}: use another scheduler, or fewer trials or devices"
        )
    # A trial that loses a process is tried again by Ray Tune, as others are.
    where = {"ray_address": settings.address, "cpus": cpus, "use_gpu": gpus > 0, "max_failures": 0}
    return Placing(_WAITS, at_once, where)
