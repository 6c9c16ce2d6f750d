"""Checkpoints: tensors and plain types only, read with `weights_only=True`, written whole or not at all."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from scipy import sparse
from torch import nn
from torch.optim import Optimizer

from recbole_perpeft.core.digest import VERSIONED_PACKAGES
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.schema import misfit
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.training.optimisers import parts_of

__all__ = [
    "CheckpointWriter",
    "check_complete",
    "load_checkpoint",
    "loader_state",
    "model_state",
    "random_state",
    "restored",
    "save_checkpoint",
    "set_loader_state",
    "set_random_state",
]

FORMAT = "recbole_perpeft checkpoint"
FORMAT_VERSION = 1
_REMEDY = "take another checkpoint, or train anew"
# Types of the entries of `best.pth` and `last.pth`, as `RunTrainer` writes them.
_SCHEMA = {
    "format_version": int,
    "model": str,
    "dataset": str,
    "config": dict[str, Any],
    "state_dict": dict[str, Any],
    "epoch": int,
    "cur_step": int,
    "best_valid_score": float,
    "best_valid_result": dict[str, float] | None,
    "extra": dict[str, Any],
    "data": dict[str, str],
    "optimizers": dict[str, dict | str],
    "scaler": dict[str, Any],
    "random": dict[str, Any],
    "loader": dict[str, Any],
    "history": list[dict[str, Any]],
}
_ARRAY, _SPARSE = "__array__", "__sparse__"


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it.

    Args:
        path: where to.
        content: tensors, arrays, sparse matrices and plain types, nested in dictionaries, lists and tuples. Modules
            are left out: their tensors belong to the state dict.

    Raises:
        PerPEFTError: the content holds something else, or the disk does not take it.
    """
    versions = {name: version(name) for name in VERSIONED_PACKAGES}
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions}
    plain = _encode(header | dict(content), "checkpoint")
    with written_whole(path) as draft:
        try:
            torch.save(plain, draft)
        except RuntimeError as error:  # what PyTorch makes of a full disk
            raise PerPEFTError(f"cannot write the checkpoint {path}: {error}; is the disk full?") from error


class CheckpointWriter:
    """Writes checkpoints, inside a `with` block one after the other in a thread beside the caller.

    There, what a checkpoint holds is copied to the CPU before `write` returns. After an error nothing more is written:
    a later file never tells of an earlier one that is not there. The block ends when all is done.

    Raises:
        PerPEFTError: as `save_checkpoint`; inside the block from the next `wait`, at its end at the latest. If the
            block ends with another error, the log has this one.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = deque[Future[None]]()
        self._has_failed = False

    def __enter__(self) -> CheckpointWriter:
        self._thread, self._has_failed = ThreadPoolExecutor(1, "checkpoints"), False
        return self

    def __exit__(self, kind, error, trace) -> None:
        assert self._thread is not None
        thread, self._thread = self._thread, None
        try:
            self.wait()
        except Exception as other:
            if error is None:
                raise
            if other is not error:
                LOGGER.error(other)
        finally:
            self._waiting.clear()
            thread.shutdown(cancel_futures=True)

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a checkpoint as `save_checkpoint` does, now or soon."""
        self.call(partial(save_checkpoint, path, content if self._thread is None else copied(content)))

    def call(self, work: Callable[[], None]) -> None:
        """Do something when all checkpoints so far are written."""
        if self._thread is None:
            work()
        else:
            self._waiting.append(self._thread.submit(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            work()
        except BaseException:
            self._has_failed = True
            raise

    def wait(self) -> None:
        """Return when everything is done."""
        while self._waiting:
            self._waiting[0].result()
            self._waiting.popleft()


def load_checkpoint(path: Path | str, model: str | None = None) -> dict[str, Any]:
    """Read a checkpoint; its tensors are on the CPU.

    Args:
        path: the file.
        model: name of the model it must belong to; None for any.

    Raises:
        PerPEFTError: no such file, not one of this package's checkpoints, or a checkpoint of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise PerPEFTError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PerPEFTError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # the unpickler meets a damaged file with whatever it stumbles over
        raise PerPEFTError(f"{path} is damaged, or not a checkpoint of recbole_perpeft") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "format_version" not in content:
        raise PerPEFTError(f"{path} is not a checkpoint of recbole_perpeft")
    wrong = misfit(content, _SCHEMA)
    if wrong:
        raise PerPEFTError(f"{path} is damaged: its entry {wrong}, which no training writes; {_REMEDY}")
    if content["format_version"] > FORMAT_VERSION:
        raise PerPEFTError(f"{path} was written by a newer recbole_perpeft; upgrade to read it")
    if model is not None and content.get("model") != model:
        raise PerPEFTError(f"{path} is a checkpoint of {content.get('model')}, not of {model}")
    with restored(path, "arrays"):
        return _decode(content)


def check_complete(content: Mapping[str, Any], source: Path | str) -> None:
    """Refuse a `last.pth` that lacks what it takes to go on.

    Raises:
        PerPEFTError: an entry is missing.
    """
    for name in sorted(_SCHEMA.keys() - {"data"} - content.keys()):  # version 0.1.0 kept nothing of the data
        raise PerPEFTError(f"{source} is damaged: it has no entry {name}; {_REMEDY}")


@contextmanager
def restored(source: Path | str, entry: str) -> Iterator[None]:
    """Put back what an entry of a checkpoint holds, whose types within only its reader knows.

    Raises:
        PerPEFTError: it cannot be put back, in place of whatever its reader stumbles over.
    """
    try:
        yield
    except PerPEFTError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise PerPEFTError(
            f"{source} is damaged: its entry {entry} is not what was written ({reason}); {_REMEDY}"
        ) from error


def model_state(config, model: AbstractRecommender) -> dict[str, Any]:
    """What `quick_start.load` needs of a checkpoint: settings and the model's tensors."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "config": config.to_dict(),
        "state_dict": dict(model.state_dict()),
        "other_parameter": model.other_parameter(),
    }


def random_state() -> dict[str, Any]:
    """State of every generator that training may draw from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undo `random_state`."""
    python_version, words, gauss = state["python"]
    random.setstate((python_version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def loader_state(loader) -> dict[str, Any]:
    """State of a train loader between two epochs: its own `get_state`, or the generators of RecBole's loaders."""
    if hasattr(loader, "get_state"):
        return {"own": loader.get_state()}
    return {name: generator.get_state() for name, generator in _generators(loader).items()}


def set_loader_state(loader, state: Mapping[str, Any]) -> None:
    """Undo `loader_state`."""
    if "own" in state:
        loader.set_state(state["own"])
    for name, generator in _generators(loader).items():
        if name in state:
            generator.set_state(state[name])


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Go on with an optimiser; its rates are those of the settings, which a resumed run may have changed.

    Raises:
        ValueError: the state is not one that the optimiser's steps have left.
    """
    kept = ("lr", "weight_decay")
    rates = [{key: value for key, value in group.items() if key in kept} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, rates, strict=True):
        group.update(own)
    for part in parts_of(optimizer):
        _check_state(part)


def _check_state(optimizer: Optimizer) -> None:
    """Refuse what the next step would stumble over: optimisers look at their state only then."""
    names = set[str]().union(*optimizer.state.values())
    for parameter, entries in optimizer.state.items():
        for name in sorted(names - entries.keys()):
            raise ValueError(f"one of its parameters has no {name}")
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(value.shape)} where the parameter is {tuple(parameter.shape)}")


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, nested in dictionaries, lists and tuples, on a device; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(entry, device) for entry in value)
    return value


def copied(value: Any, known: dict[Any, torch.Tensor] | None = None) -> Any:
    """A copy on the CPU that later training steps do not change; what is one tensor in it stays one.

    Args:
        value: tensors, arrays and sparse matrices, nested in dictionaries, lists and tuples; all else is taken as it
            is.
        known: copies of tensors that were met before.
    """
    known = {} if known is None else known
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or not value.numel():
            return value.detach().to("cpu", copy=True)
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in known:
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, np.ndarray) or sparse.issparse(value):
        return value.copy()
    if isinstance(value, dict):
        return {key: copied(entry, known) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(entry, known) for entry in value)
    return value


def _generators(loader) -> dict[str, torch.Generator]:
    """Generators of a loader of RecBole, and of the loaders that a knowledge-graph loader is made of."""
    parts = {"": loader} | {name: part for name, part in vars(loader).items() if hasattr(part, "generator")}
    found = {name: getattr(part, "generator", None) for name, part in parts.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}


def _encode(value: Any, where: str) -> Any:
    """Tensors and plain types for what is not: arrays, sparse matrices, NumPy's numbers."""
    if value is None or isinstance(value, str | bool | int | float):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # PyTorch has few operations on unsigned integers; int64 holds all that generators use.
        return {_ARRAY: torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value)}
    if sparse.issparse(value):
        matrix = value.tocsr()
        parts = [torch.from_numpy(part) for part in (matrix.data, matrix.indices, matrix.indptr)]
        return {_SPARSE: parts, "shape": list(matrix.shape)}
    if isinstance(value, Mapping):
        return {
            _encode(key, where): _encode(entry, f"{where}[{key!r}]")
            for key, entry in value.items()
            if not isinstance(entry, nn.Module)
        }
    if isinstance(value, list | tuple):
        return type(value)(_encode(entry, f"{where}[{place}]") for place, entry in enumerate(value))
    raise PerPEFTError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and _ARRAY in value:
        return value[_ARRAY].numpy()
    if isinstance(value, dict) and _SPARSE in value:
        return sparse.csr_matrix(tuple(part.numpy() for part in value[_SPARSE]), shape=tuple(value["shape"]))
    if isinstance(value, dict):
        return {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_decode(entry) for entry in value)
    return value
