"""Models of a comparison tuned with equal effort: as many trials each, chosen on the valid items."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_perpeft.core.digest import digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.runs.config import properties_folder
from recbole_perpeft.studies.compare.jobs.plan import DatasetPlan, Tuning
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec
from recbole_perpeft.studies.search.outcome import SearchReport
from recbole_perpeft.studies.search.session import SEARCH_FILE, NewSearch, SearchSettings, resume_search


def tuned(
    specs: Sequence[ModelSpec], planned: DatasetPlan, n_trials: int, n_parallel: int | None
) -> tuple[list[ModelSpec], list[Tuning]]:
    """Search for the settings of each model on one data set, with its first seed.

    The space of a model is the one that comes with the package, without what the model's entry sets itself; the first
    trial has the settings as they are. A search that was stopped goes on; one that has ended is used again as long as
    settings, data and code are the same.

    Args:
        specs: the models.
        planned: the comparison without tuning, which has checked all settings.
        n_trials: trials of each model; a space with fewer points has as many as these.
        n_parallel: trials at a time; None for as many as fit.

    Returns:
        The models with the settings that were chosen, and what was found; nothing for models without a space, such as
        Pop, which stay as they are.

    Raises:
        PerPEFTError: no trial of a model has succeeded.
    """
    first = {job.spec.name: job for job in reversed(planned.jobs)}
    found: list[Tuning] = []
    result = []
    for spec in specs:
        space = _space(spec)
        if space:
            job = first[spec.name]
            settings = {key: value for key, value in job.settings.items() if key not in _names(space)}
            start = _first_values(job.settings, space)
            _warn_of_entries(spec.name, job.settings, space, start.keys())
            name = f"search-{spec.model}-{job.dataset}-{_digest(job.key, space, n_trials)}"
            folder = Path(settings["runs_folder"]) / name
            LOGGER.info(f"{spec.name} on {job.dataset}: {n_trials} trials, {folder}")
            own = SearchSettings(
                num_samples=n_trials,
                max_concurrent=n_parallel or 0,
                devices_per_trial=settings.pop("nproc"),
                output=folder,
            )
            search = NewSearch(settings["model"], settings["dataset"], space, None, settings, own, start)
            report = resume_search(folder) if (folder / SEARCH_FILE).is_file() else search.carry_out()
            found.append(_tuning(spec.name, report))
            spec = replace(spec, settings={**spec.settings, **found[-1].chosen})
        result.append(spec)
    return result, found


def _space(spec: ModelSpec) -> dict[str, Any]:
    """What the shipped space varies, without what the model's entry sets."""
    path = properties_folder() / "search" / f"{spec.model}.yaml"
    space = read_yaml(path) if path.is_file() else {}
    return {key: value for key, value in space.items() if key.partition(".")[0] not in spec.settings}


def _names(keys: Iterable[str]) -> set[str]:
    return {key.partition(".")[0] for key in keys}


def _digest(key: str, space: Mapping[str, Any], n_trials: int) -> str:
    return digest(json.dumps([key, space, n_trials], sort_keys=True).encode(), size=8).hexdigest()


def _first_values(settings: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """What the first trial has of the settings that are searched over.

    A dictionary of which entries are searched over goes along whole, unless entries depend on what is searched over
    itself: those of one method of adapting mean nothing to another.
    """
    apart = {key.partition(".")[0] for key, value in space.items() if isinstance(value, dict) and "when" in value}
    whole = {key.partition(".")[0] for key in space if "." in key} - apart
    return {key: value for key, value in settings.items() if key in space or key in whole}


def _warn_of_entries(name: str, settings: Mapping[str, Any], space: Mapping[str, Any], kept: Collection[str]) -> None:
    """Tells of entries of dictionaries that no trial has."""
    for key in sorted(_names(space).difference(kept)):
        value = settings.get(key)
        entries = [f"{key}.{entry}" for entry in value] if isinstance(value, dict) else []
        if lost := [entry for entry in entries if entry not in space]:
            LOGGER.warning(
                f"{name}: {', '.join(lost)} stays out of the search, which chooses {key} anew: say {key} in the "
                f"model's entry ({name}[{key}=...]) to keep it"
            )


def _tuning(name: str, report: SearchReport) -> Tuning:
    if report.best is None:
        raise PerPEFTError(f"no trial of {name} has succeeded; see {report.folder}")
    names = _names(report.parameters)
    chosen = {key: value for key, value in report.best_settings.items() if key in names}
    score = float(report.best["best_valid_score"])
    return Tuning(name, report.folder, report.n_trials, report.n_epochs, score, chosen)
