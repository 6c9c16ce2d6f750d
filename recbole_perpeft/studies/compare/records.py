"""What finished runs left behind, put side by side for one data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.folder import RANKS_FILE
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.studies.compare.jobs.plan import DataDescription, DatasetPlan
from recbole_perpeft.studies.compare.jobs.runs import Outcome
from recbole_perpeft.studies.compare.lists import ListRun
from recbole_perpeft.training.rank_metrics import is_rank_metric, metric_of_ranks


@dataclass
class ModelRecord:
    """The runs of a model with all seeds.

    Attributes:
        name: what the tables call it.
        runs: finished runs by seed.
        is_trained: whether they are runs; else they are lists of another tool.
    """

    name: str
    runs: Mapping[int, Any]
    is_trained: bool = True

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Test metrics, a row a seed."""
        return pd.DataFrame([run.result["test_result"] for run in self.runs.values()])

    def mean_of(self, key: str) -> float:
        """Mean over seeds of a number of `result.json`."""
        return float(np.mean([run.result[key] for run in self.runs.values()]))

    @property
    def memory_mb(self) -> tuple[float, float | None]:
        """Means over seeds of the process's peak memory, and of PyTorch's peak on the GPU; None without one."""
        on_gpu = [run.result["peak_gpu_memory_mb"] for run in self.runs.values()]
        gpu = None if None in on_gpu else float(np.mean([peak["allocated"] for peak in on_gpu]))
        return self.mean_of("peak_memory_mb"), gpu


@dataclass(frozen=True)
class RowMetrics:
    """Metrics of every test row, averaged over seeds; rows that all models have.

    Attributes:
        users: int64 [n], number of the user in the data description.
        items: int64 [n], number of the target.
        names: metrics that follow from ranks.
        values: by model, float64 [n, len(names)].
        by_seed: by model and seed, float64 [n], the metric that chooses epochs.
        groups: by model and seed, int64 [n]; for models with groups.
        n_left_out: rows that not all models have.
    """

    users: np.ndarray
    items: np.ndarray
    names: Sequence[str]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    by_seed: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    groups: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    n_left_out: int = 0

    def of_users(self, model: str, name: str) -> np.ndarray:
        """A metric of every user, by the users' numbers; users with several rows have their mean."""
        column = self.values[model][:, self.names.index(name)]
        present, place = np.unique(self.users, return_inverse=True)
        return np.bincount(place, column, minlength=len(present)) / np.bincount(place, minlength=len(present))


@dataclass(frozen=True)
class DatasetRecord:
    """All finished runs on one data set.

    Attributes:
        plan: the part of the comparison.
        models: models with at least one finished run, in the order of the comparison.
        failures: runs that failed.
        rows: metrics of test rows; None where users had several targets.
        remarks: sentences about rows of the tables.
    """

    plan: DatasetPlan
    models: Sequence[ModelRecord]
    failures: Sequence[Outcome]
    rows: RowMetrics | None
    remarks: Sequence[str] = ()

    @property
    def trained(self) -> list[ModelRecord]:
        """The models without what is no run."""
        return [model for model in self.models if model.is_trained]

    @property
    def main_metric(self) -> str:
        """The metric that chooses epochs, in RecBole's spelling of results."""
        return self.plan.protocol["valid_metric"].lower()

    @property
    def has_parts(self) -> bool:
        """Whether the main metric is known of every test row, so that it can be told for parts of users and items."""
        return self.rows is not None and self.main_metric in self.rows.names

    @property
    def ranked(self) -> RowMetrics:
        """Metrics of test rows, for what is asked only where there are some."""
        assert self.rows is not None
        return self.rows

    def model(self, name: str) -> ModelRecord | None:
        """A model by its name."""
        return next((model for model in self.models if model.name == name), None)


def collect(
    plan: DatasetPlan, outcomes: Iterable[Outcome], lists: Mapping[str, ListRun] = MappingProxyType({})
) -> DatasetRecord:
    """Read what the runs on a data set left.

    Args:
        plan: the part of the comparison.
        outcomes: of all runs.
        lists: of other tools, by what the tables call them.

    Raises:
        PerPEFTError: a run folder is damaged.
    """
    outcomes = [
        outcome for outcome in outcomes if (outcome.job.dataset, outcome.job.split) == (plan.dataset, plan.split)
    ]
    by_name: dict[str, dict[int, RunRecord]] = {}
    for outcome in outcomes:
        if outcome.error is None:
            run = RunRecord(outcome.job.folder)
            run.check()
            by_name.setdefault(outcome.job.spec.name, {})[outcome.job.seed] = run
    models = [ModelRecord(name, runs) for name, runs in by_name.items()]
    models += [ModelRecord(name, {plan.jobs[0].seed: found}, False) for name, found in lists.items()]
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    remarks = [found.remark(name) for name, found in lists.items()]
    remarks += _without_ranks(models)
    return DatasetRecord(plan, models, failures, _row_metrics(plan, models), remarks)


def _without_ranks(models: Sequence[ModelRecord]) -> list[str]:
    """A remark about runs whose ranks are gone, which other seeds of the model have: tests need those of all."""
    lost: list[Path] = []
    for model in (model for model in models if model.is_trained):
        of_model = [run.folder for run in model.runs.values() if not (run.folder / RANKS_FILE).is_file()]
        lost += of_model if len(of_model) < len(model.runs) else []  # else users have several targets
    if not lost:
        return []
    return [
        f"Tests, intervals and breakdowns are left out, as runs lack {RANKS_FILE} that other seeds have: delete "
        f"{lost[0]}{' and the like' if len(lost) > 1 else ''}, and compare again."
    ]


@dataclass(frozen=True)
class _Ranks:
    """Ranks of a run without tokens: a few bytes a row, so that all runs are held at once."""

    rows: np.ndarray  # int64 [n], a number for every pair of user and item, ascending
    ranks: np.ndarray  # int32 [n]
    groups: np.ndarray | None  # int32 [n]

    @classmethod
    def of(cls, run: RunRecord | ListRun, description: DataDescription) -> _Ranks | None:
        table = run.ranks()
        if table is None:
            return None
        users, items = description.users.get_indexer(table["user"]), description.items.get_indexer(table["item"])
        if (users < 0).any() or (items < 0).any():
            raise PerPEFTError(
                f"{run.folder} has ranks of users or items that the data set does not have; delete the folder"
            )
        # A target that a user has twice is two rows with one number; the first stands for both.
        rows, first = np.unique(users.astype(np.int64) * len(description.items) + items, return_index=True)
        groups = table["group"].to_numpy()[first] if "group" in table else None
        return cls(rows, table["rank"].to_numpy()[first], groups)

    def at(self, rows: np.ndarray) -> _Ranks:
        place = np.searchsorted(self.rows, rows)
        return _Ranks(rows, self.ranks[place], None if self.groups is None else self.groups[place])


def _row_metrics(plan: DatasetPlan, models: Sequence[ModelRecord]) -> RowMetrics | None:
    names = tuple(name for model in models[:1] for name in model.metrics if is_rank_metric(name))
    read: dict[tuple[str, int], _Ranks] = {}
    for model in models:
        for seed, run in model.runs.items():
            ranks = _Ranks.of(run, plan.description)
            if ranks is None:
                return None
            read[model.name, seed] = ranks
    if not read or not names:
        return None
    common = reduce(partial(np.intersect1d, assume_unique=True), (ranks.rows for ranks in read.values()))
    users, items = np.divmod(common, len(plan.description.items))
    n_left_out = max(len(ranks.rows) for ranks in read.values()) - len(common)
    metrics = RowMetrics(users, items, names, n_left_out=n_left_out)
    main = plan.protocol["valid_metric"].lower()
    for (name, seed), whole in read.items():
        ranks = whole.at(common)
        values = np.stack([metric_of_ranks(metric, ranks.ranks) for metric in names], axis=1)
        n_seeds = sum(other == name for other, _ in read)
        metrics.values[name] = metrics.values.get(name, np.float64(0)) + values / n_seeds
        if main in names:
            metrics.by_seed[name, seed] = values[:, names.index(main)]
        if ranks.groups is not None:
            metrics.groups[name, seed] = ranks.groups
    return metrics
