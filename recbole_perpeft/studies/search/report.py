"""What a search leaves behind: the table of its trials, the best settings with their test metrics, a page of plots."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recbole_perpeft.core.compat import events_in
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import keys_of_kind
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RESULT_FILE, RunFolder
from recbole_perpeft.runs.record import DamagedFileError, RunRecord, Schema, ValidScores, read_json
from recbole_perpeft.runs.run import get_trainer, load
from recbole_perpeft.studies.report.escape import in_csv
from recbole_perpeft.studies.report.page import to_html
from recbole_perpeft.studies.search.journal import TrialEntry, read_entries
from recbole_perpeft.studies.search.outcome import SearchReport
from recbole_perpeft.studies.search.page import chapters, parameter_importance, title
from recbole_perpeft.studies.search.space import max_epochs
from recbole_perpeft.studies.search.trial import RUN_FOLDER, TrialPlan

_PLACES = keys_of_kind([RunSettings], "place", "display")
_RESULT: Schema = {"test_result": (dict,)}
_COLUMNS = (
    "trial",
    "status",
    "score",
    "best_epoch",
    "trained_epochs",
    "seconds",
    "starts",
    "machines",
    "has_model",
    "error",
)


def write_report(folder: Path, plan: TrialPlan, config: Config, n_trials: int, ended: bool) -> SearchReport:
    """Write `trials.csv`, `report.html`, `best.yaml`, `result.json` and TensorBoard's table of parameters.

    Args:
        folder: of the search.
        plan: what the trials have in common.
        config: the configuration where nothing is varied.
        n_trials: number of trials of the whole search.
        ended: whether it has ended; only then the best trial is evaluated on the test items.

    Raises:
        PerPEFTError: the search has ended, and no trial has a model.
    """
    metric = str(config["valid_metric"])
    entries = read_entries(plan.folder)
    trials = [_Trial.read(entry, plan) for entry in entries]
    table = _table(trials, plan)
    parameters = tuple(each.key for each in plan.space.parameters)
    with written_whole(folder / "trials.csv") as draft:
        in_csv(table.rename(columns={"score": metric})).to_csv(draft, index=False)
    candidates = table[table["has_model"] & table["score"].notna()]
    best = None
    if len(candidates):
        chosen = next(trial for trial in trials if trial.entry.name == candidates["trial"].iloc[0])
        best = _write_best(folder, plan, config, chosen, ended)
    limit = n_trials * max_epochs(config, plan.space)
    logarithmic = frozenset(each.key for each in plan.space.parameters if getattr(each.distribution, "log", False))
    at_defaults = plan.space.point_of(plan.defaults)
    unchanged = next((entry.name for entry in entries if entry.parameters == at_defaults), None)
    report = SearchReport(folder, metric, table, parameters, logarithmic, best, unchanged, n_trials, limit)
    importance = parameter_importance(table, plan.space, seed=config["seed"])
    curves = {trial.entry.name: trial.scores.by_epoch for trial in trials}
    with written_whole(folder / "report.html") as draft:
        draft.write_text(to_html(title(report), chapters(report, importance, curves)), encoding="utf-8")
    _write_tensorboard(folder, table, parameters, metric)
    if ended and best is None:
        errors = "; ".join(sorted(set(table["error"].dropna()))) or "no trial got as far as a valid score"
        raise PerPEFTError(f"the search in {folder} has found nothing: {errors}")
    return report


@dataclass(frozen=True)
class _Trial:
    """A trial with what its run left behind. With a damaged record it has no scores, and an error that says so."""

    entry: TrialEntry
    scores: ValidScores
    n_epochs: int = 0
    seconds: float = 0.0
    has_model: bool = False

    @classmethod
    def read(cls, entry: TrialEntry, plan: TrialPlan) -> _Trial:
        record = RunRecord(plan.folder / entry.name / RUN_FOLDER, remedy="the trial is left out")
        try:
            return cls(entry, plan.scores_of(record), len(record.epochs), record.seconds, record.has_model)
        except DamagedFileError as error:
            return cls(replace(entry, error=str(error)), ValidScores({}))


def _table(trials: list[_Trial], plan: TrialPlan) -> pd.DataFrame:
    rows = [
        {
            "trial": trial.entry.name,
            "status": trial.entry.status,
            "score": trial.scores.best,
            "best_epoch": trial.scores.best_epoch,
            "trained_epochs": trial.n_epochs,
            "seconds": round(trial.seconds, 1),
            "starts": trial.entry.starts,
            "machines": " ".join(dict.fromkeys(trial.entry.machines)),
            "has_model": trial.has_model,
            "error": trial.entry.error,
            **{each.key: trial.entry.parameters.get(each.key) for each in plan.space.parameters},
        }
        for trial in trials
    ]
    table = pd.DataFrame(rows, columns=[*_COLUMNS, *(each.key for each in plan.space.parameters)])
    table = table.astype({"score": float, "best_epoch": "Int64", "has_model": bool})
    # Trials without a model come after the others: the scores of an earlier stage do not compare with theirs.
    order = ["has_model", "score"]
    return table.sort_values(order, ascending=[False, not plan.bigger_is_better], kind="stable", ignore_index=True)


def _write_best(folder: Path, plan: TrialPlan, config: Config, trial: _Trial, ended: bool) -> dict[str, Any]:
    entry, scores = trial.entry, trial.scores
    run_folder = plan.folder / entry.name / RUN_FOLDER
    result = {
        "model": config["model"],
        "dataset": config["dataset"],
        "trial": entry.name,
        "parameters": entry.parameters,
        "valid_metric": config["valid_metric"],
        "best_valid_score": scores.best,
        "best_epoch": scores.best_epoch,
        "test_result": None,
        "run_folder": str(run_folder),
    }
    earlier = _earlier_result(folder, result)
    if ended:
        result["test_result"] = earlier or metrics_on_test(run_folder, config)
        with written_whole(folder / RESULT_FILE) as draft:
            draft.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    settings = {key: value for key, value in plan.settings_at(entry.parameters).items() if key not in _PLACES}
    heading = (
        f"# {config['model']} on {config['dataset']}: the best of a search on the valid items.\n"
        f"# {config['valid_metric']} {scores.best:.6f} after epoch {scores.best_epoch}; "
        "python run_recbole.py --config_files=best.yaml trains it.\n"
    )
    with written_whole(folder / "best.yaml") as draft:
        draft.write_text(heading + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return result


def metrics_on_test(run_folder: Path, config: Config) -> dict[str, float]:
    """Evaluate the best model of a run on the test items, and write its `test_ranks.parquet`.

    Args:
        run_folder: the folder of the run.
        config: tells where the data are on this machine.

    Raises:
        PerPEFTError: the run has no model, or it does not fit the data.
    """
    here = {"data_path": str(config.dataset_folder.parent), "cache_folder": config["cache_folder"]}
    loaded, model, dataset, train_data, _, test_data = load(run_folder, here)
    loaded["checkpoint_dir"] = str(run_folder)
    trainer = get_trainer(loaded)(loaded, model)
    trainer.eval_collector.data_collect(train_data)
    metrics = trainer.evaluate(test_data, load_best_model=False)
    trainer.tensorboard.close()
    if trainer.target_ranks is not None:
        RunFolder(run_folder).write_test_ranks(dataset, trainer.target_ranks, getattr(model, "user_group", None))
    return {name: float(value) for name, value in metrics.items()}


def _earlier_result(folder: Path, result: dict[str, Any]) -> dict[str, float] | None:
    """The test metrics of this very trial, if an earlier report has them."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    before = read_json(path, _RESULT, "delete it: the search then evaluates its best trial again")
    same = all(before.get(key) == result[key] for key in ("trial", "best_valid_score", "best_epoch"))
    return before["test_result"] if same else None


def _write_tensorboard(folder: Path, table: pd.DataFrame, parameters: tuple[str, ...], metric: str) -> None:
    """The table of parameters (HPARAMS); the curves of the trials are in their run folders."""
    target = folder / "tensorboard"
    for _, row in table[table["score"].notna()].iterrows():
        if (target / row["trial"]).exists():
            continue
        values = {key: _tensorboard_value(row[key]) for key in parameters}
        with events_in(target / row["trial"]) as writer:
            writer.add_hparams(values, {f"best {metric}": float(row["score"])}, run_name=".")
    LOGGER.info(f"curves: tensorboard --logdir={folder}")


def _tensorboard_value(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float) else str(value)
