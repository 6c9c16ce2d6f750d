"""The folder that a run leaves behind: settings, versions, record of the epochs, results, ranks, checkpoints, log."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import logged
from recbole_perpeft.core.whole import alone, draft_of, written_whole

PACKAGES = ("recbole-perpeft", "recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy", "scikit-learn")
SETTINGS_FILE, ENVIRONMENT_FILE, RESULT_FILE = "config.yaml", "environment.json", "result.json"
METRICS_FILE, RANKS_FILE, LOG_FILE = "metrics.csv", "test_ranks.parquet", "run.log"
LOCK_FILE = "run.lock"  # while a process writes the folder
LOG_LINE = "%(asctime)s %(levelname)s %(message)s"
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class RunFolder:
    """One run on disk, as it is written; `record.RunRecord` reads it.

    | file | content |
    |---|---|
    | `config.yaml` | all settings; `--config_files=` of it repeats the run |
    | `environment.json` | versions, machine, seed |
    | `metrics.csv` | a row an epoch (written by the trainer) |
    | `result.json` | valid and test metrics, parameters, seconds, memory |
    | `test_ranks.parquet` | user, target item and rank of every test row; of models with groups the user's group |
    | `ids.parquet` | users and items in the order of their ids (written by `ids.write_ids`) |
    | `best.pth`, `last.pth` | the best model; what it takes to resume (written by the trainer) |
    | `catalogues.safetensors` | item vectors of the best model, of everybody and each group (written by the model) |
    | `run.log`, `tensorboard/` | the log, TensorBoard's events |

    Args:
        path: an existing folder.
        writes: whether what is written is; of several processes of a run only the first does.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path = path
        self.writes = writes
        self.last_checkpoint = path / "last.pth"

    @classmethod
    def create(cls, config) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            PerPEFTError: `run_folder` exists and is not empty, or the folder cannot be made.
        """
        try:
            return cls(_chosen_folder(Path(config["run_folder"])) if config["run_folder"] else _new_folder(config))
        except OSError as error:
            raise PerPEFTError(f"cannot make the run folder: {error}") from error

    @classmethod
    def open(cls, source: Path | str) -> RunFolder:
        """The folder of an earlier run.

        Args:
            source: the folder, or its `last.pth`.

        Raises:
            PerPEFTError: this is no run that can be resumed.
        """
        source = Path(source)
        if not source.exists():
            raise PerPEFTError(f"cannot resume: there is no {source}")
        if source.is_file() and source.name != "last.pth":
            raise PerPEFTError(f"cannot resume from {source}: give the run folder, or the last.pth in it")
        folder = source if source.is_dir() else source.parent
        if not (folder / SETTINGS_FILE).is_file():
            raise PerPEFTError(
                f"cannot resume: {folder} has no {SETTINGS_FILE}; it is not a run folder, or the run was stopped "
                "before it began: start it anew"
            )
        return cls(folder)

    def alone(self) -> AbstractContextManager[None]:
        """Be the only process that writes the folder.

        Raises:
            PerPEFTError: another process writes it.
        """
        return alone(self.path, patience=0, file=self.path / LOCK_FILE)

    def write_settings(self, config) -> None:
        """Write `config.yaml`."""
        settings = {"model": config["model"], "dataset": config["dataset"]} | config.to_dict()
        self._write(SETTINGS_FILE, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120))

    def write_environment(self, config) -> None:
        """Write `environment.json`."""
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(config["device"]),
            "gpu": torch.cuda.get_device_name(config["device"]) if config["device"].type == "cuda" else None,
            "seed": config["seed"],
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "packages": {name: _version(name) for name in PACKAGES},
        }
        self._write(ENVIRONMENT_FILE, json.dumps(environment, indent=2))

    def go_on(self, config) -> None:
        """A run that was interrupted, or finished, goes on with settings that its checkpoint has accepted."""
        self.write_settings(config)
        self.write_environment(config)
        if self.writes:
            for name in (RESULT_FILE, RANKS_FILE):
                (self.path / name).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self._write(RESULT_FILE, json.dumps(result, indent=2))

    def logged(self, level: int) -> AbstractContextManager[None]:
        """Send all that is logged to `run.log` and the terminal, if this process writes."""
        return (
            logged(self.path / LOG_FILE, LOG_LINE, level=level, ending="the run ends")
            if self.writes
            else nullcontext()
        )

    def write_test_ranks(self, dataset, target_ranks, user_group: torch.Tensor | None = None) -> None:
        """Write `test_ranks.parquet`.

        Args:
            dataset: gives the tokens of internal ids.
            target_ranks: `TargetRanks`.
            user_group: int64 [n_users], the group of every user where the model has groups: a further column `group`.
                Where all are -1 there are none.
        """
        if not self.writes:
            return
        table = pd.DataFrame(
            {
                dataset.uid_field: dataset.id2token(dataset.uid_field, target_ranks.users.numpy()),
                dataset.iid_field: dataset.id2token(dataset.iid_field, target_ranks.items.numpy()),
                "rank": target_ranks.ranks.numpy().astype("int32"),
            }
        )
        if user_group is not None and bool((user_group >= 0).any()):
            table["group"] = user_group.cpu()[target_ranks.users].numpy().astype("int32")
        with written_whole(self.path / RANKS_FILE) as draft:
            table.to_parquet(draft, index=False, compression="zstd")

    def _write(self, name: str, text: str) -> None:
        if not self.writes:
            return
        with written_whole(self.path / name) as draft:
            draft.write_text(text + "\n", encoding="utf-8")


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (Linux counts in KB, macOS in bytes)."""
    # On Linux ru_maxrss begins with what the parent process had when it started this one.
    status = Path("/proc/self/status")
    peak = _PEAK.search(status.read_text()) if status.is_file() else None
    if peak is not None:
        return round(int(peak[1]) * 1024 / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def peak_gpu_memory_mb(device: torch.device) -> dict[str, float] | None:
    """Most GPU memory that PyTorch has `allocated` and `reserved` in this process, in MB; None without a GPU."""
    if device.type != "cuda":
        return None
    peaks = {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
    return {name: round(peak / 1e6, 1) for name, peak in peaks.items()}


def _chosen_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    names = {entry.name for entry in path.iterdir()}
    if SETTINGS_FILE in names:
        raise PerPEFTError(f"the run folder {path} holds a run already: choose another, or --resume={path}")
    # A run that was killed before it had written its settings cannot be resumed; it starts anew.
    if not names <= {LOG_FILE, LOCK_FILE, draft_of(path / SETTINGS_FILE).name}:
        raise PerPEFTError(f"the run folder {path} is not empty, and holds no run: choose another")
    return path


def _new_folder(config) -> Path:
    """`<runs_folder>/<model>-<dataset>-<time>-seed<seed>`; runs of the same second get a number."""
    root = Path(config["runs_folder"])
    root.mkdir(parents=True, exist_ok=True)
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config['model']}-{config['dataset']}-{time}-seed{config['seed']}"
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
