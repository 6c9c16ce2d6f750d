"""A search from its settings to its report; it may be stopped at any moment and goes on where it was."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from joblib import cpu_count

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER, SHORT_TIME, logged
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.core.whole import alone, draft_of, full_disk, written_whole
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.data.atomic import prepare_dataset_folder
from recbole_perpeft.models import get_model
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.config import Config, properties_folder
from recbole_perpeft.runs.estimate import estimate_apart, sum_table
from recbole_perpeft.runs.keys import model_keys
from recbole_perpeft.runs.processes import remove_state
from recbole_perpeft.studies.search.checks import check_fixed, check_search
from recbole_perpeft.studies.search.outcome import SearchReport
from recbole_perpeft.studies.search.placing import Placing, placing_of
from recbole_perpeft.studies.search.report import write_report
from recbole_perpeft.studies.search.searchers import SCORE, check_names, make_sampling, make_scheduler
from recbole_perpeft.studies.search.settings import SearchSettings
from recbole_perpeft.studies.search.shipping import ship, size_of
from recbole_perpeft.studies.search.space import SearchSpace, max_epochs, read_space
from recbole_perpeft.studies.search.trial import RUN_FOLDER, TrialPlan, train_trial

SEARCH_FILE, TRIALS, RAY_STATE, LOCK_FILE = "search.yaml", "trials", "ray", "search.lock"
# PBT notes the state of a good trial every `grace_period` epochs; others must still find it some epochs later.
_SPARE_STATES = 4


def search(
    model: str | None = None,
    dataset: str | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    settings: SearchSettings | None = None,
) -> SearchReport:
    """Search, choose the best trial on the valid items, and evaluate it on the test items.

    Args:
        model: name of a model of this package or of RecBole.
        dataset: name of a data set.
        space: what to search over: a file, or what such a file holds, as
            `{"learning_rate": {"loguniform": [1e-4, 1e-2]}}`; by default what comes with the package for the model.
        config_file_list: YAML files with settings of all trials; the search begins with what the space has too.
        config_dict: settings of all trials; they win over the files, and the space may not have them.
        settings: how to search.

    Returns:
        Folder, table of the trials, best trial and its settings.

    Raises:
        PerPEFTError: anything about the settings, the space, the data or the cluster that does not work; nothing was
            started then.
        KeyboardInterrupt: the search was stopped; its report covers what there is, and `resume_search` goes on.
    """
    return NewSearch(model, dataset, space, config_file_list, config_dict, settings or SearchSettings()).carry_out()


@dataclass(frozen=True)
class NewSearch:
    """A search that has no folder yet; attributes as the arguments of `search`.

    Attributes:
        start: settings that the search begins with, which win over the files and may be searched over.
    """

    model: str | None = None
    dataset: str | None = None
    space: str | Path | Mapping[str, Any] | None = None
    config_file_list: Sequence[str] | None = None
    config_dict: Mapping[str, Any] | None = None
    settings: SearchSettings = SearchSettings()
    start: Mapping[str, Any] = field(default_factory=dict)

    def carry_out(self) -> SearchReport:
        """As `search`."""
        config, source, session = self._checked()
        folder = _new_folder(self.settings.output, config)
        # While the draft is there, what else is there belongs to a search that has not begun.
        with written_whole(folder / SEARCH_FILE) as draft:
            draft.write_text(_yaml({"search": _plain(self.settings), "settings": session.fixed}), encoding="utf-8")
            suffix = source.suffix if isinstance(source, Path) else ".yaml"
            with written_whole(folder / f"space{suffix}") as copy:
                if isinstance(source, Path):
                    shutil.copyfile(source, copy)
                else:
                    copy.write_text(_yaml(source), encoding="utf-8")
        return session.carry_out(folder)

    def estimate(self) -> str:
        """What it would take on this machine if no trial is stopped early, as a table.

        The trial with the settings as they are is measured, in one process, the others are taken to be like it.

        Raises:
            PerPEFTError: settings, space or data are wrong.
        """
        settings, session = self.settings, self._checked()[2]
        n_trials, cpus = session.sampling.n_trials, settings.cpus * settings.devices_per_trial
        one = estimate_apart(session.config.to_dict() | session.fixed, with_test=False)
        fitting = int(cpu_count() // cpus) if cpus else n_trials
        at_once = max(1, min(n_trials, fitting, settings.max_concurrent or n_trials))
        # Ray's processes are used again by the trials that follow.
        table = sum_table([(replace(one, what=f"trial of {one.what}", launch=0.0), n_trials)], at_once)
        stopping = "" if settings.scheduler == "none" else f"; {settings.scheduler} stops trials early, it takes less"
        apart = "" if settings.devices_per_trial == 1 else "; a trial is measured on one device"
        return (
            f"{table}\nwithout early stopping{stopping}{apart}; Ray's start and the best trial's test are not counted"
        )

    def _checked(self) -> tuple[Config, Path | Mapping[str, Any], _Search]:
        named = dict(self.config_dict or {})
        config = Config(self.model, self.dataset, self.config_file_list, {**self.start, **named})
        source = Path(self.space) if isinstance(self.space, str) else self.space or _shipped_space(config["model"])
        chosen = read_space(source)
        check_fixed(chosen, named)
        fixed = {"model": config["model"], "dataset": config["dataset"]}
        fixed |= dict(chosen.fixed) | config.external_config_dict
        if fixed.get("nproc", 1) != 1:
            raise PerPEFTError(f"nproc is {fixed['nproc']}: say how many processes train a trial by devices_per_trial")
        fixed |= {
            "data_path": str(config.dataset_folder.parent.absolute()),
            "cache_folder": str(Path(config["cache_folder"]).absolute()),
        }
        if self.settings.devices_per_trial > 1:
            fixed["nproc"] = self.settings.devices_per_trial
        return config, source, _Search(self.settings, cluster.absolute_paths(fixed), chosen)


def resume_search(folder: Path, changes: Mapping[str, Any] | None = None) -> SearchReport:
    """Go on with a search that was stopped. Ended trials stay, others go on after their last finished epoch.

    Args:
        folder: the output of the search.
        changes: fields of `SearchSettings` to change: only `address`.

    Raises:
        PerPEFTError: this is no search, or as `search`.
    """
    folder = Path(folder).absolute()
    if not (folder / SEARCH_FILE).is_file():
        raise PerPEFTError(f"cannot resume: {folder} has no {SEARCH_FILE}, it is not the folder of a search")
    content = read_yaml(folder / SEARCH_FILE)
    for key in (changes or {}).keys() - {"address"}:
        raise PerPEFTError(f"a resumed search has its settings already: leave out --{key}; only --address may change")
    settings = settings_from(content["search"] | dict(changes or {}), SearchSettings)
    files = sorted(folder.glob("space*"))
    if not files:
        raise PerPEFTError(f"cannot resume: the file of the search space is missing from {folder}")
    return _Search(settings, content["settings"], read_space(files[0])).carry_out(folder)


class _Search:
    """A search whose settings are known to work.

    Args:
        settings: how to search.
        fixed: settings of all trials, with model and data set; those of the space are where it begins.
        space: the search space.
    """

    def __init__(self, settings: SearchSettings, fixed: Mapping[str, Any], space: SearchSpace):
        self.settings, self.fixed, self.space = settings, dict(fixed), space
        self.rates = model_keys(get_model(fixed["model"]), "rate")
        check_names(settings.searcher, settings.scheduler, space, self.rates)
        config = check_search(space, fixed)
        prepare_dataset_folder(config)
        self.config = config
        self.mode = "max" if config["valid_metric_bigger"] else "min"
        self.sampling = make_sampling(
            settings.searcher, space, config.to_dict(), settings.num_samples, self.mode, config["seed"]
        )

    def carry_out(self, folder: Path) -> SearchReport:
        """Run or resume the trials, then write the report, which an interrupted search has too."""
        with (
            full_disk(folder),
            alone(folder, patience=0, file=folder / LOCK_FILE),
            logged(folder / "search.log", "%(asctime)s %(message)s", SHORT_TIME),
        ):
            plan = TrialPlan(
                folder=folder / TRIALS,
                space=self.space,
                settings=self.fixed,
                defaults=self.config.to_dict(),
                bigger_is_better=self.mode == "max",
                carries_state=self.settings.scheduler == "pbt",
            )
            try:
                self._run_trials(folder, plan)
            except KeyboardInterrupt:
                write_report(folder, plan, self.config, n_trials=self.sampling.n_trials, ended=False)
                raise
            return write_report(folder, plan, self.config, n_trials=self.sampling.n_trials, ended=True)

    def _run_trials(self, folder: Path, plan: TrialPlan) -> None:
        data_folder = self.config.dataset_folder
        store_bytes = size_of(data_folder) if self.settings.ship_data else 0
        with ray_session.running_ray(self.settings.address, store_bytes):
            placing = placing_of(self.settings, self.config["use_gpu"], self.sampling.n_trials)
            plan = replace(plan, where=placing.settings)
            paths = {"output": folder}
            if self.settings.ship_data:
                plan = replace(plan, data=ship(data_folder, self.config["dataset"]))
            else:
                paths["data"] = data_folder
            if self.settings.address:
                cluster.check_machines(paths, "run trials", "use --ship_data")
            results = self._tuner(folder, plan, placing).fit()
        # Ray's processes have ended: what they have left of trials that were stopped is complete.
        trials = {Path(result.path).name for result in results}
        remove_lost_trials(plan.folder, trials)
        for name in trials:
            remove_state(plan.folder / name / RUN_FOLDER)

    def _tuner(self, folder: Path, plan: TrialPlan, placing: Placing):
        from ray import tune

        from recbole_perpeft.studies.search.journal import Journal

        trainable = tune.with_resources(tune.with_parameters(train_trial, plan=plan), placing.resources)
        state = folder / RAY_STATE
        if tune.Tuner.can_restore(str(state)) and any(state.glob("experiment_state-*.json")):
            LOGGER.info(f"the search goes on: {folder}")
            return tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(plan.folder, ignore_errors=True)
        plan.folder.mkdir()
        settings = self.settings
        epochs = max_epochs(self.config, self.space)
        grace = settings.grace_period or max(1, epochs // 10)
        LOGGER.info(
            f"{self.sampling.n_trials} trials of {self.config['model']} on {self.config['dataset']}, at most {epochs} "
            f"epochs each, {settings.searcher} points, scheduler {settings.scheduler}: {folder}"
        )
        return tune.Tuner(
            trainable,
            param_space=self.sampling.param_space,
            tune_config=tune.TuneConfig(
                search_alg=self.sampling.search_alg,
                scheduler=make_scheduler(
                    settings.scheduler, self.space, self.rates, self.mode, epochs, grace, settings.reduction_factor
                ),
                # A searcher or scheduler of Ray refuses to be told twice.
                metric=SCORE if self.sampling.search_alg is None and settings.scheduler == "none" else None,
                mode=self.mode if self.sampling.search_alg is None and settings.scheduler == "none" else None,
                num_samples=self.sampling.num_samples,
                max_concurrent_trials=placing.at_once or None,
                time_budget_s=settings.time_budget or None,
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=RAY_STATE,
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=grace + _SPARE_STATES),
                callbacks=[Journal(plan, str(self.config["valid_metric"]))],
                verbose=0,
            ),
        )


def remove_lost_trials(trials_folder: Path, known: Collection[str]) -> None:
    """Remove trials that Ray does not know: begun just before the search was killed, after Ray had noted its state.

    Searchers that choose points themselves start another trial in place of these, which has another name.

    Args:
        trials_folder: the folder with a folder for each trial.
        known: names of the trials of a search that has ended.
    """
    for path in sorted(trials_folder.iterdir()):
        if path.is_dir() and path.name not in known:
            LOGGER.info(f"trial {path.name} was lost when the search was killed; it is removed")
            shutil.rmtree(path)


def _trial_name(trial) -> str:
    return trial.trial_id


def _shipped_space(model: str) -> Path:
    path = properties_folder() / "search" / f"{model}.yaml"
    if not path.is_file():
        present = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise PerPEFTError(f"no search space comes with the package for {model}, only for {present}: --search=FILE")
    return path


def _new_folder(output: Path | None, config: Config) -> Path:
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(output or Path("searches") / f"{config['model']}-{config['dataset']}-{time}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not _never_began(folder):
            is_search = (folder / SEARCH_FILE).is_file()
            hint = f", or go on with --resume={folder}" if is_search else ""
            raise PerPEFTError(f"the folder {folder} is not empty: choose another{hint}")
    except OSError as error:
        raise PerPEFTError(f"cannot make the folder of the search: {error}") from error
    return folder


def _never_began(folder: Path) -> bool:
    """Whether a search was killed before its settings were there: it starts anew."""
    draft = draft_of(folder / SEARCH_FILE)
    names = {path.name for path in folder.iterdir()}
    return draft.name in names and all(name.lstrip(".").startswith("space.") for name in names - {draft.name})


def _plain(settings: SearchSettings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=119)
