"""Runs of a comparison as tasks of Ray, which places them on this machine or on those of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.record import DamagedFileError
from recbole_perpeft.studies.compare.jobs.plan import Job
from recbole_perpeft.studies.compare.jobs.runs import Outcome, carry_out, ended

_OF_A_RUN = "a run of the comparison"


@contextmanager
def placed_by_ray(jobs: Sequence[Job]) -> Iterator[Callable[[Job, DamagedFileError | None], Task]]:
    """Ray for the time of the block, and what gives it a run.

    A run takes a processor, and a GPU if there are any and it uses them. `ray_address` of the runs says which cluster.

    Args:
        jobs: The runs; on a cluster, all machines must see their folders and data.

    Raises:
        PerPEFTError: Ray cannot be started or joined, a run fits no machine or lacks something there, or one is of
            several processes.
    """
    for job in jobs:
        if job.settings["nproc"] > 1:
            raise PerPEFTError(
                f"{job}: --workers=ray places whole runs, and nproc is {job.settings['nproc']}: set nproc to 1, or "
                "leave out --workers"
            )
    first = jobs[0].settings
    with ray_session.running_ray(first["ray_address"]):
        for settings in {job.spec.name: job.settings for job in jobs}.values():
            cpus, gpus = _needs(settings)
            cluster.check_resources(cpus, gpus, _OF_A_RUN)
        if first["ray_address"]:
            paths = {"output": jobs[0].folder.parent.absolute(), "data": Path(first["data_path"]).absolute()}
            paths["output"].mkdir(parents=True, exist_ok=True)
            cluster.check_machines(paths, "carry out runs")
        yield partial(Task, max_retries=first["max_failures"])


def _needs(settings: Any) -> tuple[int, int]:
    """Processors and GPUs of a run."""
    return 1, int(bool(settings["use_gpu"] and cluster.n_gpus()))


class Task:
    """A run under way, in a process of its own on some machine. One that is lost goes on elsewhere.

    Args:
        job: The run.
        damage: As in `Outcome`.
        max_retries: How often a run goes on whose process or machine is lost.
    """

    def __init__(self, job: Job, damage: DamagedFileError | None, max_retries: int) -> None:
        import ray

        self.job, self._damage = job, damage
        cpus, gpus = _needs(job.settings)
        settings = cluster.absolute_paths(job.settings, "data_path", "cache_folder", "runs_folder")
        # A process for each run, as without Ray: nothing that one leaves behind meets another.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=max_retries, max_calls=1)(carry_out)
        self._answer = task.remote(job.folder.absolute(), settings)

    def has_ended(self) -> bool:
        """Whether it has."""
        import ray

        return bool(ray.wait([self._answer], timeout=0)[0])

    def outcome(self) -> Outcome:
        """How it has ended."""
        import ray

        try:
            error = ray.get(self._answer)
        except ray.exceptions.RayError as lost:
            error = f"Ray could not carry it out: {one_line(lost)}"
        return ended(self.job, error, "", self._damage)

    def end(self) -> None:
        """Stop it."""
        import ray

        ray.cancel(self._answer, force=True)
