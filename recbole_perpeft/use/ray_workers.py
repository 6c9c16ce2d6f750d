"""Lists by workers of Ray, on this machine or on several: each loads the model once, batches come back as they end.

Workers read the run folder and the data set by their paths, which all machines see. People and the plan of batches
travel once a machine, through Ray's object store; a worker is told numbers of batches.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.runs import cluster
from recbole_perpeft.use.lists import Work
from recbole_perpeft.use.recommend import Batch, Part, People, Recommender, Wanted

_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Source:
    """What a worker makes its recommender of.

    Attributes:
        run: The run folder, or a checkpoint in it.
        settings: Those of the run, which mean the same on all machines.
        needs_log: Whether the log must be there.
    """

    run: Path
    settings: Mapping[str, Any]
    needs_log: bool


class Worker:
    """Makes lists of batches; an error travels as its message, which Ray would bury in a traceback.

    Args:
        source: What it makes its recommender of.
        wanted: What is wanted.
        n_threads: Of PyTorch.
        shared: Gives people and the batches by their number.
    """

    def __init__(
        self,
        source: Source,
        wanted: Wanted,
        n_threads: int,
        shared: Callable[[], tuple[People, Mapping[int, Batch]]],
    ) -> None:
        torch.set_num_threads(n_threads)
        self._error, self._wanted = "", wanted
        try:
            self._recommender = Recommender.from_file(source.run, source.settings, source.needs_log)
            self._recommender.scorer.keeps_all = False
            self._candidates = self._recommender.candidates(wanted)
            self._people, self._batches = shared()
        except PerPEFTError as error:
            self._error = str(error)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Number, lists and error of a batch, a row each; here there is one."""
        number, part = int(rows["number"][0]), None
        error = self._error
        if not error:
            try:
                batch = self._batches[number]
                part = self._recommender.lists_of(self._people, self._wanted, batch, self._candidates)
            except PerPEFTError as found:
                error = str(found)
        # As bytes: Ray would make one array of tuples of arrays, or fail to.
        return {"number": [number], "part": [pickle.dumps(part)], "error": [error]}


@contextmanager
def ray_workers(
    run: Path, config: Any, needs_log: bool, n_workers: int | None = None, address: str | None = None
) -> Iterator[Work]:
    """Workers of Ray for the time of the block, which compute what `write_lists` asks for.

    Args:
        run: The run folder, or a checkpoint in it.
        config: The settings that it was loaded with here.
        needs_log: Whether the log must be there.
        n_workers: By default one a GPU, or one a machine where there are none.
        address: Of a cluster, `auto` or `host:port`; None starts Ray on this machine.

    Raises:
        PerPEFTError: There is no Ray, no place for so many workers, or a machine does not see the files.
    """
    settings = cluster.settings_anywhere(config)
    with ray_session.running_ray(address, n_cpus=max(n_workers or 1, cpu_count())):
        gpus = int(bool(config["use_gpu"] and cluster.n_gpus()))
        n = n_workers or (int(cluster.n_gpus()) if gpus else max(1, cluster.n_machines()))
        cpus = cluster.most_cpus(n, gpus)
        cluster.check_resources(cpus, gpus, "a worker (nproc)", n)
        source = Source(run.absolute(), settings | ({"gpu_id": "0"} if gpus else {}), needs_log)
        if address:
            data = config.dataset_folder.absolute()
            cluster.check_machines({"run": source.run} | ({"data": data} if data.exists() else {}), "make lists")

        yield partial(_results, source, n, cpus, gpus)


def _results(
    source: Source,
    n_workers: int,
    cpus: int,
    gpus: int,
    recommender: Recommender,
    people: People,
    wanted: Wanted,
    batches: Mapping[int, Batch],
) -> Iterator[tuple[int, Part]]:
    """Lists of batches by their number, of workers with so many processors and GPUs each.

    Where a worker is lost Ray starts another, which goes on.

    Raises:
        PerPEFTError: A worker cannot make lists, or Ray gives up.
    """
    import ray
    import ray.data

    if not batches:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # importing it has chosen another
    shared = ray.put((people.without_names(), dict(batches)))
    rows = ray.data.from_items([{"number": number} for number in batches]).map_batches(
        Worker,
        fn_constructor_args=(source, wanted, cpus, _Shared(shared)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(batches))),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for row in rows.iter_rows():
            if row["error"]:
                raise PerPEFTError(row["error"])
            yield int(row["number"]), pickle.loads(row["part"])
    except ray.exceptions.RayTaskError:  # a mistake of ours, with its traceback
        raise
    except ray.exceptions.RayError as error:
        raise PerPEFTError(
            f"Ray has lost workers: {one_line(error)[:_LONGEST_REASON]}; what is finished of a file is kept: the same "
            "command goes on"
        ) from error


@dataclass(frozen=True)
class _Shared:
    """Reads from the object store, where arrays are not copied."""

    of: Any

    def __call__(self) -> tuple[People, Mapping[int, Batch]]:
        import ray

        return ray.get(self.of)
