"""What becomes of the trials: a small file for each, written while the search runs, and a line in the log."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ray.tune import Callback

from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.runs.cluster import free_places
from recbole_perpeft.runs.record import RunRecord, Schema, read_json
from recbole_perpeft.studies.search.trial import ERROR_FILE, RUN_FOLDER, TrialPlan

TRIAL_FILE = "trial.json"
_ENTRY: Schema = {
    "name": (str,),
    "parameters": (dict,),
    "status": (str,),
    "starts": (int,),
    "machines": (list,),
    "error": (str, NoneType),
}


@dataclass
class TrialEntry:
    """One trial.

    Attributes:
        name: its id in Ray and its folder.
        parameters: the values that it uses.
        status: running; finished by itself; stopped by the scheduler or the time budget; failed.
        starts: how often it was started: more than once if a worker or the search was stopped.
        machines: names of those that it ran on.
        error: why it failed.
    """

    name: str
    parameters: dict[str, Any]
    status: str = "running"
    starts: int = 0
    machines: list[str] = field(default_factory=list)
    error: str | None = None

    @classmethod
    def read(cls, path: Path) -> TrialEntry:
        """Read its file.

        Raises:
            PerPEFTError: the file is damaged.
        """
        content = read_json(path, _ENTRY, f"delete it and the trial's folder {path.parent} to leave the trial out")
        return cls(**{name: content[name] for name in _ENTRY})

    def write(self, folder: Path) -> None:
        """Write it into the folder of the trial."""
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / TRIAL_FILE) as draft:
            draft.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")


def read_entries(trials_folder: Path) -> list[TrialEntry]:
    """All trials that were ever started, by name.

    Raises:
        PerPEFTError: a file is damaged.
    """
    return [TrialEntry.read(path) for path in sorted(trials_folder.glob(f"*/{TRIAL_FILE}"))]


class Journal(Callback):
    """Records what Ray Tune does with each trial.

    Args:
        plan: what all trials have in common.
        metric: what scores are called in the log.
    """

    def __init__(self, plan: TrialPlan, metric: str):
        # Ray pickles callbacks into the state of the search: plain values only.
        self._folder = plan.folder
        self._space, self._defaults = plan.space, dict(plan.defaults)
        self._metric = metric
        self._are_of_ray_train = bool(plan.where)
        self._entries: dict[str, TrialEntry] = {}
        self._latest_epoch: dict[str, int] = {}

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        """A worker has taken up the trial."""
        entry = self._entry(trial)
        entry.starts += 1
        entry.status = "running"
        verb = "starts" if entry.starts == 1 else f"goes on (start {entry.starts})"
        self._log(trial, f"{verb}: " + ", ".join(f"{key}={value}" for key, value in entry.parameters.items()))
        self._write(entry)

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        """The trial has reported an epoch."""
        entry = self._entry(trial)
        machine = str(result.get("machine"))
        if not entry.machines or entry.machines[-1] != machine:
            entry.machines.append(machine)
            self._write(entry)
        # Where a run goes on or ends it repeats an epoch.
        if self._latest_epoch.get(entry.name) != result["epoch"]:
            self._latest_epoch[entry.name] = result["epoch"]
            self._log(trial, f"epoch {result['epoch']}, {self._metric} {result['score']:.6f}")

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        """The trial has failed and is tried again."""
        self._free_places(trial)
        self._log(trial, f"is tried again: {self._error(trial)}")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        """The trial has ended, or was ended by the scheduler."""
        finished = RunRecord(self._folder / trial.trial_id / RUN_FOLDER).finished
        self._end(trial, "finished" if finished else "stopped")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        """The trial has failed for good."""
        self._end(trial, "failed", self._error(trial))

    def _free_places(self, trial) -> None:
        """Places that Ray Train has for a trial are not given back where the process of the trial is killed."""
        if self._are_of_ray_train:
            free_places(self._folder / trial.trial_id / RUN_FOLDER)

    def _end(self, trial, status: str, error: str | None = None) -> None:
        self._free_places(trial)
        entry = self._entry(trial)
        entry.status, entry.error = status, error
        self._write(entry)
        self._log(trial, status if error is None else f"{status}: {error}")

    def _entry(self, trial) -> TrialEntry:
        parameters = self._space.active(trial.config["point"], self._defaults)
        if trial.trial_id not in self._entries:
            path = self._folder / trial.trial_id / TRIAL_FILE
            before = TrialEntry.read(path) if path.is_file() else None
            self._entries[trial.trial_id] = before or TrialEntry(trial.trial_id, parameters)
        entry = self._entries[trial.trial_id]
        entry.parameters = parameters  # PBT changes them
        return entry

    def _write(self, entry: TrialEntry) -> None:
        entry.write(self._folder / entry.name)

    def _error(self, trial) -> str:
        """What its worker has written; a worker that was killed has written nothing."""
        path = self._folder / trial.trial_id / ERROR_FILE
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        return " ".join(text.split()) or f"its worker is gone; ray/{trial.trial_id}/error.txt may say why"

    def _log(self, trial, text: str) -> None:
        LOGGER.info(f"trial {trial.trial_id} {text}")
