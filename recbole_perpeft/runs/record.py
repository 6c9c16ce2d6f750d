"""What a run left behind, read in one place: every file is checked against what a run writes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
from pyarrow import ArrowException

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.runs.folder import ENVIRONMENT_FILE, METRICS_FILE, RANKS_FILE, RESULT_FILE, SETTINGS_FILE
from recbole_perpeft.training.rank_metrics import is_rank_metric, metric_of_ranks

Schema = Mapping[str, tuple[type, ...]]  # types of the entries of a file by name; it may have others

_NUMBER = (int, float)
_RESULT: Schema = {
    "best_valid_score": (*_NUMBER, NoneType),
    "test_result": (dict,),
    "epochs": (int,),
    "median_epoch_seconds": _NUMBER,
    "parameters": (int,),
    "trainable_parameters": (int,),
    "peak_memory_mb": _NUMBER,
    "peak_gpu_memory_mb": (dict, NoneType),
}
_ENVIRONMENT: Schema = {"gpu": (str, NoneType), "threads": (int,), "cpus": (int, NoneType)}
_EPOCH_COLUMNS = ("stage", "epoch", "train_seconds")  # every row of `metrics.csv` has these


class DamagedFileError(PerPEFTError):
    """A file is not what was written.

    Args:
        path: the file.
        reason: what is wrong with it.
        remedy: what to do.
    """

    def __init__(self, path: Path, reason: str, remedy: str):
        super().__init__(f"{path} is damaged: {reason}; {remedy}")
        self.path, self.reason = path, reason


def read_json(path: Path, schema: Schema, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: the file.
        schema: what it must have.
        remedy: what to do if it is damaged.

    Raises:
        DamagedFileError: it cannot be read, or lacks an entry, or an entry has another type.
    """
    try:
        content = json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        raise DamagedFileError(path, _reason(error), remedy) from error
    if not isinstance(content, dict):
        raise DamagedFileError(path, "it is no JSON object", remedy)
    for name, types in schema.items():
        if name not in content:
            raise DamagedFileError(path, f"it has no {name}", remedy)
        if not isinstance(content[name], types) or isinstance(content[name], bool) and bool not in types:
            raise DamagedFileError(path, f"{name} is {content[name]!r}", remedy)
    return content


@dataclass(frozen=True)
class ValidScores:
    """Scores of a run on the valid items.

    Attributes:
        by_epoch: of the evaluated epochs, from 1.
        best: best score of the stage that chooses the model; None before the first evaluation.
        best_epoch: its epoch.
    """

    by_epoch: Mapping[int, float]
    best: float | None = None
    best_epoch: int | None = None


class RunRecord:
    """A run on disk, finished or not. Files are read when they are first asked for.

    All properties and methods that read a file raise `DamagedFileError`, which names it.

    Args:
        folder: the run folder, which need not exist.
        remedy: what messages say is done about a damaged file; by default that the run can be resumed.
    """

    def __init__(self, folder: Path, remedy: str | None = None):
        self.folder = folder
        self._remedy = remedy or f"resume the run to write it anew (--resume={folder})"

    @property
    def finished(self) -> bool:
        """Whether the run has ended by itself."""
        return (self.folder / RESULT_FILE).is_file()

    @property
    def has_model(self) -> bool:
        """Whether there is a best model."""
        return (self.folder / "best.pth").is_file()

    @cached_property
    def result(self) -> dict[str, Any]:
        """`result.json`, of a finished run."""
        result = read_json(self.folder / RESULT_FILE, _RESULT, self._remedy)
        for name, value in result["test_result"].items():
            if not isinstance(value, float | int):
                raise self._damaged(RESULT_FILE, f"{name} of the test result is {value!r}")
        for lists in (result.get("test_lists", {}), *_groups_of(result)):
            if not isinstance(lists, dict) or not all(isinstance(value, float | int) for value in lists.values()):
                raise self._damaged(RESULT_FILE, f"figures of the test lists are {lists!r}")
        return result

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """`metrics.csv`: a row an epoch; `stage`, `epoch` (from 0), `train_seconds`, valid metrics where evaluated."""
        path = self.folder / METRICS_FILE
        if not path.is_file() and not self.finished:
            return pd.DataFrame(columns=list(_EPOCH_COLUMNS))
        try:
            text = read_regular(path).decode()
            table = pd.read_csv(io.StringIO(text))
        except (OSError, ValueError) as error:
            raise self._damaged(METRICS_FILE, _reason(error)) from error
        if not text.endswith("\n"):
            raise self._damaged(METRICS_FILE, "its last line is cut off")
        self._check_epochs(table)
        return table

    @cached_property
    def machine(self) -> str:
        """Device and threads, by `environment.json`."""
        environment = read_json(self.folder / ENVIRONMENT_FILE, _ENVIRONMENT, self._remedy)
        threads = f"{environment['threads']} of {environment['cpus']} CPU threads"
        return " and ".join(filter(None, [environment["gpu"], threads]))

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return float(self.epochs.filter(items=["train_seconds", "valid_seconds"]).sum().sum())

    def settings(self) -> dict[str, Any]:
        """All settings, with model and data set.

        Raises:
            PerPEFTError: they cannot be read, or lack model or data set.
        """
        path = self.folder / SETTINGS_FILE
        settings = read_yaml(path)
        for key in ("model", "dataset"):
            if key not in settings:
                raise PerPEFTError(f"{path} has no {key}: it is not the settings file of a run")
        return settings

    def valid_scores(self, metric: str, bigger_is_better: bool) -> ValidScores:
        """Scores on the valid items.

        Args:
            metric: name of the score.
            bigger_is_better: whether a higher score is better.
        """
        epochs = self.epochs
        column = {name.lower(): name for name in epochs}.get(metric.lower())
        evaluated = epochs.dropna(subset=[column]) if column else epochs.iloc[:0]
        if column is None or evaluated.empty:
            return ValidScores({})
        by_epoch = dict(zip((evaluated["epoch"] + 1).tolist(), evaluated[column].tolist(), strict=True))
        last_stage = evaluated.loc[evaluated["stage"] == epochs["stage"].iloc[-1], ["epoch", column]]
        if last_stage.empty:
            return ValidScores(by_epoch)
        # Of equal scores the last one counts, whose model RecBole keeps.
        newest_first = last_stage.iloc[::-1]
        place = newest_first[column].argmax() if bigger_is_better else newest_first[column].argmin()
        epoch, score = newest_first.iloc[place]
        return ValidScores(by_epoch, float(score), int(epoch) + 1)

    def ranks(self) -> pd.DataFrame | None:
        """`test_ranks.parquet`: user, item, rank, and group where the model has groups; read anew at every call.

        Returns:
            None where users had several targets.
        """
        path = self.folder / RANKS_FILE
        if not path.is_file():
            return None
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError, ArrowException) as error:
            raise self._damaged(RANKS_FILE, _reason(error)) from error
        names = list(table.columns[2:])  # the first two have the names that the data set gives to users and items
        if names not in (["rank"], ["rank", "group"]):
            raise self._damaged(RANKS_FILE, f"its columns are {', '.join(map(str, table.columns))}")
        if not all(pd.api.types.is_integer_dtype(table[name]) for name in names) or (table["rank"] < 1).any():
            raise self._damaged(RANKS_FILE, "not all ranks are whole numbers from 1 on")
        for name in table.columns[:2]:
            if not pd.api.types.is_string_dtype(table[name]):
                raise self._damaged(RANKS_FILE, f"not all of {name} are text")
        return table.set_axis(["user", "item", *names], axis=1)

    def check(self) -> None:
        """Read all files of a finished run but the ranks, which may be large.

        Raises:
            DamagedFileError: one of them is damaged.
        """
        _ = self.result, self.epochs, self.machine

    def damage(self) -> DamagedFileError | None:
        """What is wrong with the first damaged file of a finished run; None if there is none, or the run goes on."""
        try:
            if self.finished:
                self.check()
                self._check_result(self.ranks())
        except DamagedFileError as error:
            return error
        return None

    def _check_result(self, ranks: pd.DataFrame | None) -> None:
        """The metrics of the result are those of the ranks: a number that was changed is still a number."""
        if ranks is None or not (self.folder / SETTINGS_FILE).is_file():
            return
        found = {name.lower(): value for name, value in self.result["test_result"].items()}
        settings = self.settings()
        metrics, cuts = (settings.get(key) for key in ("metrics", "topk"))
        if not isinstance(metrics, list) or not isinstance(cuts, list):
            return
        tolerance = 10.0 ** -settings.get("metric_decimal_place", 4)
        for name in (f"{metric}@{cut}".lower() for metric in metrics for cut in cuts):
            if not is_rank_metric(name):
                continue
            if name not in found:
                raise self._damaged(RESULT_FILE, f"it has no {name}")
            of_ranks = float(metric_of_ranks(name, ranks["rank"].to_numpy()).mean())
            if not abs(found[name] - of_ranks) <= tolerance:
                raise self._damaged(RESULT_FILE, f"{name} is {found[name]}, the ranks say {of_ranks:.6f}")

    def _check_epochs(self, table: pd.DataFrame) -> None:
        missing = [name for name in _EPOCH_COLUMNS if name not in table]
        if missing:
            raise self._damaged(METRICS_FILE, f"it has no column {missing[0]}")
        for name in table:
            if name != "stage" and len(table) and not pd.api.types.is_numeric_dtype(table[name]):
                raise self._damaged(METRICS_FILE, f"not all of {name} are numbers")
        if table[list(_EPOCH_COLUMNS)].isna().any(axis=None):
            raise self._damaged(METRICS_FILE, "an epoch lacks its stage, number or seconds")
        if self.finished and len(table) != self.result["epochs"]:
            raise self._damaged(METRICS_FILE, f"it has {len(table)} epochs of {self.result['epochs']}")

    def _damaged(self, name: str, reason: str) -> DamagedFileError:
        return DamagedFileError(self.folder / name, reason, self._remedy)


def _groups_of(result: Mapping[str, Any]) -> list[Any]:
    groups = result.get("test_lists_by_group", [])
    return groups if isinstance(groups, list) else [groups]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__
