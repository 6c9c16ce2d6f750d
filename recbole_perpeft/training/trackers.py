"""Trackers: who is told how a run goes. A run imports those that its setting `trackers` names, and no others."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.registry import Registry
from recbole_perpeft.core.whole import written_whole

IDS_FILE = "trackers.json"  # in the run folder: what trackers call the run, so that a resumed one is the same there
EPOCH_KEYS = ("stage", "epoch", "train_loss", "train_seconds", "valid_seconds")  # of a row, besides metrics
_PARAMETERS_AT_ONCE, _LONGEST_PARAMETER = 100, 500  # what MLflow takes


class Tracker:
    """What a tracker may do; this one does nothing.

    Args:
        config: RecBole configuration.
        folder: the run folder.
        ids: what trackers call the run, by their names; what is added is kept for when the run is resumed.
    """

    packages: Sequence[str] = ()  # modules that it needs; the extra that brings them has the tracker's name

    def __init__(self, config, folder: Path, ids: dict[str, str]) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Hear of an epoch: a row of `metrics.csv`."""

    def result(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hear of the result; returns what `result.json` is to have besides."""
        return {}

    def close(self, failed: bool) -> None:
        """The run ends."""


class TensorBoard(Tracker):
    """Events in the run folder. RecBole's trainers write them themselves, to a writer of `core.compat`."""

    packages = ("tensorboard",)


class WeightsAndBiases(Tracker):
    """A run of `wandb_project`, with the names that RecBole's logger gives; `WANDB_MODE=offline` keeps it here."""

    packages = ("wandb",)

    def __init__(self, config, folder: Path, ids: dict[str, str]) -> None:
        import wandb
        from recbole.utils import WandbLogger

        self._wandb = wandb
        self._is_ours = wandb.run is None  # else somebody logs around the run
        if self._is_ours:
            ids.setdefault("wandb", secrets.token_hex(4))
            wandb.init(
                project=config["wandb_project"],
                dir=str(folder),
                id=ids["wandb"],
                name=folder.name,
                config=config.to_dict(),
                resume="allow",
            )
        self._logger = WandbLogger(SimpleNamespace(log_wandb=True, wandb_project=config["wandb_project"]))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log training and valid metrics, each by its own step as RecBole does."""
        own = {name: row[name] for name in ("epoch", "train_loss", "train_seconds")}
        self._logger.log_metrics(own | {"train_step": row["epoch"]}, head="train")
        if metrics := metrics_of(row):
            self._logger.log_metrics(metrics | {"valid_step": row["epoch"]}, head="valid")

    def result(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Log the test metrics."""
        self._logger.log_eval_metrics(result["test_result"], head="test")
        return {}

    def close(self, failed: bool) -> None:
        """End the run, unless somebody else began it."""
        if self._is_ours:
            self._wandb.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run in MLflow: at `MLFLOW_TRACKING_URI`, or else in the file `mlflow.db` of `runs_folder`."""

    packages = ("mlflow",)

    def __init__(self, config, folder: Path, ids: dict[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a local run tells nobody
        from mlflow.tracking import MlflowClient

        local = f"sqlite:///{Path(config['runs_folder']).absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        if not self._knows(ids.get("mlflow")):
            tags = {"run_folder": str(folder.absolute()), "model": config["model"], "dataset": config["dataset"]}
            run = self._client.create_run(self._experiment(), run_name=folder.name, tags=tags)
            ids["mlflow"] = run.info.run_id
            self._write_parameters(run.info.run_id, config.to_dict())
        self._run = ids["mlflow"]
        self._client.update_run(self._run, status="RUNNING")

    def _knows(self, run: str | None) -> bool:
        """Whether MLflow still has a run: its database may be another one by now."""
        from mlflow.exceptions import MlflowException

        if run is None:
            return False
        try:
            return bool(self._client.get_run(run))
        except MlflowException:
            return False

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "recbole_perpeft")
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _write_parameters(self, run: str, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in settings.items()]
        for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=parameters[start : start + _PARAMETERS_AT_ONCE])

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log an epoch's numbers; `ndcg@20` is `valid/ndcg_at_20`, as MLflow takes no `@`."""
        numbers = {name: row[name] for name in ("train_loss", "train_seconds", "valid_seconds") if name in row}
        self._write(numbers | {f"valid/{name}": value for name, value in metrics_of(row).items()}, row["epoch"])

    def result(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Log the test metrics."""
        self._write({f"test/{name}": value for name, value in result["test_result"].items()}, 0)
        return {}

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        named = {re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_")): value for name, value in numbers.items()}
        self._client.log_batch(self._run, [Metric(name, float(value), now, step) for name, value in named.items()])

    def close(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class CodeCarbon(Tracker):
    """Energy of the machine while the run lasts, by CodeCarbon without network; `emissions.csv` in the run folder.

    Emissions need a country, in CodeCarbon's own settings (such as `CODECARBON_COUNTRY_ISO_CODE=FRA`).
    """

    packages = ("codecarbon",)

    def __init__(self, config, folder: Path, ids: dict[str, str]) -> None:
        from codecarbon import OfflineEmissionsTracker

        self._tracker = OfflineEmissionsTracker(
            project_name=folder.name, output_dir=str(folder), log_level="error", allow_multiple_runs=True
        )
        self._tracker.start()
        self._is_running = True

    def result(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """`energy_kwh` of `result.json`, and `emissions_kg` where the country is known."""
        self._stop()
        found = self._tracker.final_emissions_data
        known = {"emissions_kg": float(found.emissions)} if found.country_iso_code else {}
        return {"energy_kwh": float(found.energy_consumed)} | known

    def _stop(self) -> None:
        if self._is_running:
            self._is_running = False
            self._tracker.stop()

    def close(self, failed: bool) -> None:
        """Stop measuring, if nothing else has."""
        self._stop()


TRACKERS: Registry[type[Tracker]] = Registry(
    "trackers",
    {
        "tensorboard": f"{__name__}:TensorBoard",
        "wandb": f"{__name__}:WeightsAndBiases",
        "mlflow": f"{__name__}:MLflow",
        "codecarbon": f"{__name__}:CodeCarbon",
    },
)


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The valid metrics of an epoch's row."""
    return {name: value for name, value in row.items() if name not in EPOCH_KEYS}


def chosen_trackers(config) -> list[str]:
    """Names of the trackers of a run: those of `trackers`, and `wandb` with RecBole's `log_wandb`.

    Raises:
        PerPEFTError: a name is none, or its package is not installed.
    """
    value = config["trackers"] or []
    named = [name.strip() for name in value.split(",")] if isinstance(value, str) else [*value]
    named = [*dict.fromkeys([*filter(None, named), *(["wandb"] if config["log_wandb"] else [])])]
    for name in named:
        missing = [package for package in TRACKERS.get(name).packages if importlib.util.find_spec(package) is None]
        if missing:
            raise PerPEFTError(
                f"trackers: {name} needs the package {missing[0]}: pip install 'recbole-perpeft[{name}]', or leave "
                f"{name} out"
            )
    return named


class Trackers:
    """The trackers of a run. One that fails is left out from then on, which the log tells; the run goes on."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}

    def add(self, name: str, tracker: Tracker) -> None:
        """One more, which has started."""
        self._trackers[name] = tracker

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Tell of an epoch."""
        self._tell(lambda tracker: tracker.epoch(row))

    def result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Tell of the result; what `result.json` is to have besides."""
        found: dict[str, Any] = {}
        self._tell(lambda tracker: found.update(tracker.result(result)))
        return found

    def close(self, failed: bool) -> None:
        """Tell that the run ends."""
        self._tell(lambda tracker: tracker.close(failed))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._trackers.items()]:
            try:
                call(tracker)
            except Exception as error:  # whatever a library raises; hours of training are worth more
                del self._trackers[name]
                LOGGER.warning(f"the tracker {name} is left out from here on: {one_line(error)}")


@contextmanager
def tracked(config, folder: Path) -> Iterator[Trackers]:
    """The trackers of a run while it lasts.

    Args:
        config: RecBole configuration.
        folder: the run folder.

    Raises:
        PerPEFTError: one of them cannot start.
    """
    ids, trackers, failed = _read_ids(folder / IDS_FILE), Trackers(), True
    known = dict(ids)
    try:
        for name in chosen_trackers(config):
            try:
                trackers.add(name, TRACKERS.get(name)(config, folder, ids))
            except Exception as error:
                raise PerPEFTError(
                    f"trackers: {name} cannot start: {one_line(error)}; mend it, or leave it out"
                ) from error
        if ids != known:
            with written_whole(folder / IDS_FILE) as draft:
                draft.write_text(json.dumps(ids), encoding="utf-8")
        yield trackers
        failed = False
    finally:
        trackers.close(failed)


def _read_ids(path: Path) -> dict[str, str]:
    """What trackers call a run; a damaged file counts as none: the run is then a new one there."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}
