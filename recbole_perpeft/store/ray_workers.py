"""Hidden states computed as Ray Data batches, by several workers or machines.

Workers read images by their paths and encoders by their name: on several machines, both lie in a shared folder. Rows
travel back to the process that writes the cache.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.pretrained.families import Family, added_families, register_family
from recbole_perpeft.store.encode import HiddenStateSettings, StateEncoder
from recbole_perpeft.store.recipe import Chunk, ComputedChunk

_REMEDY = "pip install 'ray[data]', or use local"


class _Worker:
    """Encodes chunks in a process of Ray; an encoder is loaded once a worker."""

    def __init__(self, kind: str, settings: HiddenStateSettings, n_threads: int, families: Sequence[Family] = ()):
        torch.set_num_threads(n_threads)
        for family in families:
            register_family(family)
        self._encoder = StateEncoder(kind, settings)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Chunks to encoded chunks; an error travels as its message, which Ray would bury in a traceback."""
        try:
            return {"encoded": list(self._encoder.encode(batch["chunk"])), "error": [""] * len(batch["chunk"])}
        except PerPEFTError as error:
            return {"encoded": [None], "error": [str(error)]}


def encode_with_ray(kind: str, settings: HiddenStateSettings, chunks: list[Chunk]) -> Iterator[ComputedChunk]:
    """As `StateEncoder.encode`, in the order in which chunks are finished.

    Connects to the cluster that `RAY_ADDRESS` names, or starts Ray on this machine and stops it afterwards.

    Raises:
        PerPEFTError: Ray cannot be imported, started or joined, or as `StateEncoder.encode`.
    """
    if find_spec("ray") is None:
        raise PerPEFTError(f"engine: ray cannot be imported; {_REMEDY}")
    with ray_session.running_ray(os.environ.get("RAY_ADDRESS"), store_bytes=None):
        try:
            import ray.data
        except ImportError as error:
            raise PerPEFTError(f"engine: ray cannot be imported ({error}); {_REMEDY}") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        has_gpus = settings.device != "cpu" and resources.get("GPU", 0) >= 1
        available = int(resources["GPU" if has_gpus else "CPU"])
        n_workers = min(settings.n_workers or available, available, len(chunks))
        n_cpus = max(1, int(resources["CPU"]) // n_workers)
        results = ray.data.from_items([{"chunk": chunk} for chunk in chunks]).map_batches(
            _Worker,
            fn_constructor_args=(kind, settings, n_cpus, added_families()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            num_cpus=n_cpus,
            num_gpus=1 if has_gpus else 0,
        )
        for row in results.iter_rows():
            if row["error"]:
                raise PerPEFTError(row["error"])
            yield row["encoded"]
