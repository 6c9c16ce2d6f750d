"""A comparison from beginning to end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, full_disk
from recbole_perpeft.runs.config import DEFAULT_DATASET
from recbole_perpeft.runs.estimate import estimate_apart, sum_table
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.studies.compare.jobs.plan import DatasetPlan, Job, plan
from recbole_perpeft.studies.compare.jobs.runs import Outcome, carry_out_all
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec, choose, parse_models
from recbole_perpeft.studies.compare.jobs.tasks import placed_by_ray
from recbole_perpeft.studies.compare.jobs.tuning import tuned
from recbole_perpeft.studies.compare.lists import list_run, parse_lists
from recbole_perpeft.studies.compare.records import DatasetRecord, collect
from recbole_perpeft.studies.compare.report import write_report


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        folder: where the report is.
        baseline: name of the model that the others are compared with.
        records: finished runs by data set.
        tables: the numbers of the report's CSV files by their names: `runs`, `quality`, `intervals`, `significance`,
            `cost`, `tuning`, `beyond`, `beyond_groups`, `history`, `popularity`, `slices`, `groups`, `stability`,
            `splits`; without those that have nothing to show.
    """

    folder: Path
    baseline: str
    records: Sequence[DatasetRecord]
    tables: Mapping[str, pd.DataFrame]

    @property
    def failures(self) -> list[Outcome]:
        """Runs that failed, on all data sets."""
        return [failure for record in self.records for failure in record.failures]


def compare(
    models: str | Sequence[str | ModelSpec],
    dataset: str | Sequence[str] = DEFAULT_DATASET,
    output: str | Path = "comparison",
    n_seeds: int = 3,
    baseline: str | None = None,
    n_parallel: int | None = 1,
    config_file_list: Sequence[str] = (),
    config_dict: Mapping[str, Any] | None = None,
    true_group_field: str | None = None,
    code_version: str | None = None,
    splits: Sequence[str] = (),
    lists: Sequence[str] = (),
    controls: bool = False,
    n_trials: int = 0,
    workers: Literal["processes", "ray"] = "processes",
    when_done: Callable[[int, int, Outcome], None] = lambda number, total, outcome: None,
) -> Comparison:
    """Train models under one protocol and write a report.

    All settings and data are checked before anything starts. Every run has a folder below `runs_folder` and a process
    of its own. Finished runs of the same settings, data and code are used again, interrupted ones are resumed, failed
    ones are tried again.

    Args:
        models: as on the command line, `"SASRec, PerPEFT[n_groups=2] as two groups"`, or a list of such entries; see
            `specs.parse_models`.
        dataset: name of a data set, or several.
        output: folder of the report.
        n_seeds: how many seeds; the setting `seed` is the first, the others follow it.
        baseline: name of the model that the others are compared with; by default the first.
        n_parallel: how many runs at a time at most; None for as many as Ray has a place for, and one without Ray.
        config_file_list: YAML files with settings of all models.
        config_dict: settings of all models; they win over the files.
        true_group_field: column of the `.user` file that names the users' true groups; the report then tells how far
            the models' groups agree with it.
        code_version: stands for the code where runs are looked up, so that runs of other code with the same name are
            used again; by default a hash of the code.
        splits: kinds of splits, such as LS and GT, each with all runs and then side by side; by default that of the
            settings alone.
        lists: files with columns user, item and score that another tool made, `lists.csv` or `lists.csv as NAME`, each
            a row of all tables under the same protocol.
        controls: whether every model of content brings its controls along as further rows.
        n_trials: how many settings of each model are tried before, see `tuning.tuned`; 0 compares them as they are.
        workers: whether runs are processes of this machine, or tasks that Ray places, on the cluster of the setting
            `ray_address` or on this machine.
        when_done: called after every run with its number, the number of runs and the outcome.

    Returns:
        Folder of the report, its numbers as tables, and runs that failed.

    Raises:
        PerPEFTError: settings or data are wrong, no run succeeded, or another process is writing this report.
    """
    if n_trials < 0:
        raise PerPEFTError(f"--tune is {n_trials}: it must be at least 0")
    specs = parse_models(models)
    baseline = choose(specs, [baseline or specs[0].name])[0].name
    _check_folder(Path(output))
    of_all: dict[str, Any] = {
        "n_seeds": n_seeds,
        "config_file_list": config_file_list,
        "config_dict": config_dict,
        "true_group_field": true_group_field,
        "code_version": code_version,
        "controls": controls,
    }
    plans = _plans(specs, dataset, of_all, splits, n_parallel)
    files = parse_lists(lists, [spec.name for spec in specs])
    if files and len(plans) > 1:
        raise PerPEFTError("--lists are made for one data set and one split: name one dataset, and leave out --splits")
    if n_trials:
        found = [tuned(specs, part, n_trials, n_parallel) for part in plans]
        plans = [
            replace(plan(best, part.dataset, split=part.split, **of_all), tunings=tunings)
            for part, (best, tunings) in zip(plans, found, strict=True)
        ]
    foreign = {file.name: list_run(file, plans[0]) for file in files}
    # All seeds one after the other: whoever stops early has whole rows of models.
    jobs = sorted((job for part in plans for job in part.jobs), key=lambda job: job.seed)
    total = len({job.folder for job in jobs})
    done: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        done.append(outcome)
        when_done(len(done), total, outcome)

    with full_disk(Path(output)), alone(Path(output), patience=0):
        with placed_by_ray(jobs) if workers == "ray" else nullcontext() as start:
            outcomes = carry_out_all(jobs, n_parallel, tell, start)
        if all(outcome.error is not None for outcome in outcomes):
            errors = dict.fromkeys(f"{outcome.job}: {outcome.error}" for outcome in outcomes)
            raise PerPEFTError("no run succeeded:\n  " + "\n  ".join(errors))
        records = [collect(part, outcomes, foreign) for part in plans]
        return Comparison(Path(output), baseline, records, write_report(Path(output), records, baseline))


def _check_folder(output: Path) -> None:
    """Whether the folder of the report can be made, before hours of training."""
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "nothing can be written there" if place.is_dir() else "is a file"
        raise PerPEFTError(f"--output is {output}, and {place}: {reason}; name another folder")


def _plans(
    specs: Sequence[ModelSpec],
    dataset: str | Sequence[str],
    of_all: Mapping[str, Any],
    splits: Sequence[str],
    n_parallel: int | None,
) -> list[DatasetPlan]:
    """The parts of a comparison; `of_all` is what `plan` is given for each of them."""
    for name, value in (("seeds", of_all["n_seeds"]), ("parallel", n_parallel)):
        if value is not None and value < 1:
            raise PerPEFTError(f"--{name} is {value}: it must be at least 1")
    datasets = [dataset] if isinstance(dataset, str) else dataset
    kinds = dict.fromkeys(splits) or [None]
    return [plan(specs, name, split=split, **of_all) for name in datasets for split in kinds]


def estimate_comparison(
    models: str | Sequence[str | ModelSpec],
    dataset: str | Sequence[str] = DEFAULT_DATASET,
    splits: Sequence[str] = (),
    n_parallel: int | None = 1,
    n_seeds: int = 3,
    **of_all: Any,
) -> str:
    """What the runs of a comparison would take that are not finished yet, as a table; arguments as for `compare`.

    One run of each model is measured, the others of its seeds are taken to be like it. Where Ray says how many
    run at a time, it is as many as this machine has GPUs, or processors.

    Args:
        models, dataset, splits, n_parallel, n_seeds: as for `compare`.
        of_all: what else `plan` is given: settings, `controls` and the like.

    Raises:
        PerPEFTError: settings or data are wrong.
    """
    plans = _plans(parse_models(models), dataset, of_all | {"n_seeds": n_seeds}, splits, n_parallel)
    waiting: dict[tuple[str, str], dict[Path, Job]] = {}
    for job in (job for part in plans for job in part.jobs if not RunRecord(job.folder).finished):
        waiting.setdefault((job.spec.name, job.title), {})[job.folder] = job
    rows = []
    for (name, title), jobs in waiting.items():
        one = estimate_apart(next(iter(jobs.values())).settings)
        rows.append((replace(one, what=f"{name} on {title}"), len(jobs)))
    n_runs = len({job.folder for part in plans for job in part.jobs})
    n_left = sum(n for _, n in rows)
    gpus = torch.cuda.device_count() if any(job.settings["use_gpu"] for part in plans for job in part.jobs) else 0
    table = sum_table(rows, min(n_parallel or gpus or cpu_count(), max(n_left, 1)))
    return table + (f"\n{n_runs - n_left} of {n_runs} runs are finished and used again" if n_left < n_runs else "")
