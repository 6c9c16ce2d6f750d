"""One trial: a run in a folder of its own that reports to Ray Tune after every evaluated epoch."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, written_whole
from recbole_perpeft.runs.folder import METRICS_FILE, RESULT_FILE, SETTINGS_FILE
from recbole_perpeft.runs.record import DamagedFileError, RunRecord, ValidScores
from recbole_perpeft.studies.search.shipping import ShippedData
from recbole_perpeft.studies.search.space import SearchSpace, with_point

RUN_FOLDER, ERROR_FILE = "run", "error.txt"
_SECONDS_FOR_ANOTHER_WORKER = 60
_CARRIED_FILES = ("last.pth", "best.pth", SETTINGS_FILE, METRICS_FILE)


@dataclass(frozen=True)
class TrialPlan:
    """What the trials of a search have in common.

    Attributes:
        folder: the folder that has a folder for each trial; workers on all machines see it.
        space: the search space.
        settings: fixed settings, with model and data set.
        defaults: all settings where nothing is varied.
        bigger_is_better: whether a higher score is better.
        carries_state: whether a trial gives its state to Ray, so that another may go on from it (PBT).
        data: the data set, if it travels through Ray's object store.
        where: further settings of each run, which say where it trains, and not what it learns.
    """

    folder: Path
    space: SearchSpace
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    bigger_is_better: bool
    carries_state: bool = False
    data: ShippedData | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def settings_at(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the trial at a point of the space."""
        return with_point(self.settings, self.space.active(dict(point), self.defaults))

    def scores_of(self, record: RunRecord) -> ValidScores:
        """Valid scores of the run of a trial."""
        return record.valid_scores(str(self.defaults["valid_metric"]), self.bigger_is_better)


def train_trial(config: Mapping[str, Any], plan: TrialPlan) -> None:
    """The function that Ray Tune runs in a worker; leaves the message of an exception in the folder of the trial.

    Args:
        config: `{"point": values of the parameters}`.
        plan: what all trials have in common.
    """
    from ray import tune

    folder = plan.folder / tune.get_context().get_trial_id()
    folder.mkdir(parents=True, exist_ok=True)
    error_file = folder / ERROR_FILE
    error_file.unlink(missing_ok=True)
    try:
        _train(config, plan, folder / RUN_FOLDER)
    except Exception as error:
        error_file.write_text(str(error) or type(error).__name__, encoding="utf-8")
        raise


def _train(config: Mapping[str, Any], plan: TrialPlan, folder: Path) -> None:
    """Start or continue the run of a trial.

    A trial that was stopped - its process, its machine or the whole search - goes on in its run folder after the last
    finished epoch. A trial that Ray gives the state of another one goes on from that state with its own settings.

    Raises:
        PerPEFTError: the settings or the data do not work.
    """
    from ray import tune

    from recbole_perpeft.runs.run import resume, run

    settings = plan.settings_at(config["point"]) | dict(plan.where)
    settings |= {"run_folder": str(folder), "show_progress": False}
    if plan.data is not None:
        settings |= plan.data.settings_here()
    reporter = _Reporter(folder, plan)
    # A worker that Ray believes dead may still be at work for a moment.
    with alone(folder, _SECONDS_FOR_ANOTHER_WORKER):
        if plan.carries_state and tune.get_checkpoint() is not None:
            folder.mkdir(exist_ok=True)
            with tune.get_checkpoint().as_directory() as state:
                _take_state(Path(state), folder)
        if not (folder / SETTINGS_FILE).is_file():
            run(config_dict=settings, callback_fn=reporter, with_test=False)
        elif not reporter.report_latest():
            changes = {key: value for key, value in settings.items() if key not in ("model", "dataset", "run_folder")}
            resume(folder, changes, callback_fn=reporter, with_test=False)
        reporter.report_end()


class _Reporter:
    """Tells Ray Tune how a run is getting on."""

    def __init__(self, folder: Path, plan: TrialPlan):
        self._folder = folder
        self._plan = plan
        self._machine = _machine()
        self._latest: dict[str, Any] | None = None

    def __call__(self, epoch: int, score: float) -> None:
        """Called by the trainer when an evaluated epoch is on disk."""
        self._report(epoch + 1, score, self._scores())

    def report_latest(self) -> bool:
        """Report where a run goes on: Ray may not have heard of its latest epochs.

        Returns:
            Whether the run has finished. One with a damaged file has not: it writes it anew when it goes on.
        """
        try:
            scores = self._scores()
        except DamagedFileError:
            return False
        if scores.by_epoch:
            epoch = max(scores.by_epoch)
            self._report(epoch, scores.by_epoch[epoch], scores)
        return RunRecord(self._folder).finished

    def report_end(self) -> None:
        """Make the best score the last that Ray hears."""
        scores = self._scores()
        if self._latest is None or scores.best is None:
            raise PerPEFTError(f"the run in {self._folder} has ended without a valid score")
        self._report(self._latest["epoch"], scores.best, scores)

    def _scores(self) -> ValidScores:
        return self._plan.scores_of(RunRecord(self._folder))

    def _report(self, epoch: int, score: float, scores: ValidScores) -> None:
        from ray import tune

        metrics = {"epoch": epoch, "score": score, "best_score": scores.best, "machine": self._machine}
        self._latest = metrics
        if not self._plan.carries_state:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as state:
            for name in _CARRIED_FILES:
                if (self._folder / name).is_file():
                    _link(self._folder / name, Path(state) / name)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(state))


def _machine() -> str:
    """Name of this machine; with the beginning of Ray's id where Ray has several nodes on it."""
    import ray

    host = socket.gethostname()
    n_nodes = sum(node["Alive"] and node["NodeManagerHostname"] == host for node in ray.nodes())
    return host if n_nodes == 1 else f"{host}:{ray.get_runtime_context().get_node_id()[:8]}"


def _take_state(state: Path, folder: Path) -> None:
    """Make a run folder go on from the state of another run, or from an earlier one of its own."""
    (folder / RESULT_FILE).unlink(missing_ok=True)
    (folder / "best.pth").unlink(missing_ok=True)
    for name in _CARRIED_FILES:
        if (state / name).is_file():
            with written_whole(folder / name) as draft:
                shutil.copyfile(state / name, draft)


def _link(source: Path, target: Path) -> None:
    # Files of a run are replaced and never changed: a link is a copy that costs nothing.
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
