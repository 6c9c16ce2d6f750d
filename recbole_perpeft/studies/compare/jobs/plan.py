"""The runs of a comparison: every model on every data set with every seed, all under one protocol."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import ModelType

from recbole_perpeft.core.digest import code_fingerprint, data_fingerprint, digest, large_file_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.plugins import plugin_digest
from recbole_perpeft.core.protocol import with_split
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Kind, defaults_of, keys_of_kind
from recbole_perpeft.core.yaml_values import read_yaml
from recbole_perpeft.data.atomic import prepare_dataset_folder
from recbole_perpeft.data.files.atomic_table import TableReader, read_table
from recbole_perpeft.data.history import HistoryIndex, history_of
from recbole_perpeft.data.photos.images import file_stamp
from recbole_perpeft.data.split import RowHistories
from recbole_perpeft.runs.config import Config, changed, properties_folder, settings_file
from recbole_perpeft.runs.keys import model_keys
from recbole_perpeft.runs.run import create_dataset, get_model
from recbole_perpeft.studies.compare.jobs.controls import controls_of
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec

# What must be the same for models to be compared: interactions, split, candidates, metrics, choice of the epoch.
PROTOCOL_KEYS = keys_of_kind([RunSettings], "protocol")
_OF_THE_COMPARISON = ("dataset", "model", "seed", *keys_of_kind([RunSettings], "place"))
_OF_LABELS = (ModelType.CONTEXT, ModelType.DECISIONTREE)
WITHOUT_EFFECT: tuple[Kind, ...] = ("place", "device", "display")  # kinds of settings
# A model without settings of its own, to read the protocol and the data by.
_PLAIN_MODEL = "Pop"


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        dataset: the data set.
        spec: the model.
        seed: the seed.
        key: identifies the numbers of the run; runs with one key are one run.
        folder: the run folder.
        settings: all settings, as plain types.
        split: kind of the split, where several are compared.
    """

    dataset: str
    spec: ModelSpec
    seed: int
    key: str
    folder: Path
    settings: Mapping[str, Any]
    split: str | None = None

    @property
    def title(self) -> str:
        """Data set and split, as the report calls them."""
        return _title(self.dataset, self.split)

    def __str__(self) -> str:
        return f"{self.spec.name} on {self.title}, seed {self.seed}"


@dataclass(frozen=True)
class TestRows:
    """Test rows with one target each, by the numbers of a `DataDescription`.

    Attributes:
        users: int64 [n].
        items: the targets, int64 [n].
        histories: what each row's user had before.
    """

    __test__ = False  # no class of tests

    users: np.ndarray
    items: np.ndarray
    histories: RowHistories


@dataclass(frozen=True)
class DataDescription:
    """Users and items of a data set, without the pads.

    Attributes:
        users: tokens.
        items: tokens.
        history_length: int64 [n_users], interactions before the (first) test item.
        train_count: int64 [n_items], interactions in the train part.
        known_user: bool [n_users], whether the train part has the user.
        true_group: [n_users], the group that the data set names; None if it is not asked for.
        test_rows: the test part; None where users have several targets at once.
    """

    users: pd.Index
    items: pd.Index
    history_length: np.ndarray
    train_count: np.ndarray
    known_user: np.ndarray
    true_group: np.ndarray | None = None
    test_rows: TestRows | None = None


@dataclass(frozen=True)
class Tuning:
    """What the search for a model's settings has found.

    Attributes:
        name: what the tables call the model.
        folder: of the search.
        n_trials: how many settings were tried.
        n_epochs: that these took in all.
        valid_score: of the best trial.
        chosen: its settings.
    """

    name: str
    folder: Path
    n_trials: int
    n_epochs: int
    valid_score: float
    chosen: Mapping[str, Any]


@dataclass(frozen=True)
class DatasetPlan:
    """The part of a comparison on one data set.

    Attributes:
        dataset: its name.
        protocol: values of `PROTOCOL_KEYS`.
        description: what the breakdowns need to know about users and items.
        jobs: the runs, by model and then by seed.
        split: kind of the split, where several are compared.
        tunings: how the models' settings were found, if they were searched for.
    """

    dataset: str
    protocol: Mapping[str, Any]
    description: DataDescription
    jobs: Sequence[Job]
    split: str | None = None
    tunings: Sequence[Tuning] = ()

    @property
    def title(self) -> str:
        """What the report calls it."""
        return _title(self.dataset, self.split)


def _title(dataset: str, split: str | None) -> str:
    return dataset if split is None else f"{dataset} split by {split}"


def plan(
    specs: Sequence[ModelSpec],
    dataset: str,
    n_seeds: int,
    config_file_list: Sequence[str] = (),
    config_dict: Mapping[str, Any] | None = None,
    true_group_field: str | None = None,
    code_version: str | None = None,
    split: str | None = None,
    controls: bool = False,
) -> DatasetPlan:
    """Check all settings and read the data of one data set.

    Args:
        specs: the models.
        dataset: the data set.
        n_seeds: how many seeds; the setting `seed` is the first, the others follow it.
        config_file_list: YAML files with settings of all models, or names of presets.
        config_dict: settings of all models; they win over the files.
        true_group_field: column of the `.user` file that names the users' true groups.
        code_version: stands for the code in the runs' keys; by default `code_fingerprint()`.
        split: kind of the split, see `protocol.with_split`; by default what the settings say.
        controls: whether models of content bring their controls along.

    Raises:
        PerPEFTError: settings or data are wrong, or a model sets something that belongs to the protocol.
    """
    shared = _files_and_words(config_file_list, config_dict or {})
    shared = shared if split is None else with_split(shared, split)
    reference = _reference(dataset, shared)
    if split is not None and reference["benchmark_filename"]:
        raise PerPEFTError(
            f"--splits: the parts of {dataset} are given (benchmark_filename {reference['benchmark_filename']}), so "
            "that every split would be the same: leave --splits out, or set benchmark_filename to ~"
        )
    protocol = {key: reference[key] for key in PROTOCOL_KEYS}
    configs: dict[str, Config] = {}
    waiting, every = deque(specs), []
    while waiting:
        spec = waiting.popleft()
        _check_overrides(spec)
        layers = shared | dict(spec.settings) | _protocol_layer(dataset, shared)
        try:
            configs[spec.name] = Config(spec.model, dataset, config_dict=layers)
        except PerPEFTError as error:
            raise PerPEFTError(f"{spec.name} on {dataset}: {error}") from error
        _check_protocol(spec, configs[spec.name], protocol)
        every.append(spec)
        if controls and spec in specs:
            added = controls_of(spec, configs[spec.name], true_group_field)
            waiting.extendleft(control for control in reversed(added) if control.name not in configs)
    prepare_dataset_folder(reference)
    code = code_version or code_fingerprint() + plugin_digest(shared.get("plugin"))
    fingerprints = data_fingerprint(reference.dataset_folder, dataset), code
    seeds = range(reference["seed"], reference["seed"] + n_seeds)
    jobs = [_job(spec, configs[spec.name], seed, *fingerprints, split) for spec in every for seed in seeds]
    return DatasetPlan(dataset, protocol, describe(reference, true_group_field), jobs, split)


def describe(config, true_group_field: str | None = None) -> DataDescription:
    """Read and split the data set of a configuration.

    Args:
        config: settings of any model without needs of its own.
        true_group_field: column of the `.user` file that names the users' true groups.

    Raises:
        PerPEFTError: the data cannot be read.
    """
    dataset = create_dataset(config)
    built = dataset.build()
    trained = history_of(built, "valid")
    users = pd.Index(dataset.field2id_token[dataset.uid_field][1:].astype(str))
    return DataDescription(
        users=users,
        items=pd.Index(dataset.field2id_token[dataset.iid_field][1:].astype(str)),
        history_length=_lengths_before_test(built)[1:],
        train_count=np.bincount(trained.items, minlength=dataset.item_num)[1:],
        known_user=trained.lengths[1:] > 0,
        true_group=None if true_group_field is None else _true_groups(config, users, true_group_field),
        test_rows=_test_rows(built),
    )


def _test_rows(built: Sequence[Any]) -> TestRows | None:
    part, before = built[2], built[2].row_histories
    users, items = (part.inter_feat[field].numpy() for field in (part.uid_field, part.iid_field))
    if part.row_targets is not None or before is None and len(np.unique(users)) < len(users):
        return None
    if before is None:
        history = history_of(built, "test")
        before = RowHistories(history, users, history.lengths[users])
    log = HistoryIndex(before.log.indptr[1:], before.log.items - 1)
    return TestRows(users - 1, items - 1, RowHistories(log, users - 1, before.lengths))


def _lengths_before_test(built: Sequence[Any]) -> np.ndarray:
    """Interactions of each user before his first test target, int64 [n_users]."""
    lengths = history_of(built, "test").lengths
    if built[2].row_histories is not None:
        rows = built[2].row_histories
        lengths[rows.users] = np.iinfo(np.int64).max
        np.minimum.at(lengths, rows.users, rows.lengths)
    return lengths


def _true_groups(config: Config, users: pd.Index, field: str) -> np.ndarray:
    """Numbers of the groups that the `.user` file names; not read with the log, of which it would filter users.

    Raises:
        PerPEFTError: the file or its column is missing, or a user has no group or several lines.
    """
    path = config.dataset_folder / f"{config['dataset']}.user"
    if not path.is_file():
        raise PerPEFTError(f"{path} is missing, in which true_group_field={field} is to be a column")
    names = [config["USER_ID_FIELD"], field]
    table = read_table(TableReader(path, names.__contains__, config["field_separator"], config["encoding"])).rows
    if missing := [name for name in names if name not in table]:
        raise PerPEFTError(f"{path} has no column {missing[0]}, which true_group_field={field} needs")
    groups = table.dropna().set_index(names[0])[field]
    if groups.index.has_duplicates:
        user = groups.index[groups.index.duplicated()][0]
        raise PerPEFTError(f"{path}: the user {user!r} has several lines; keep one, or leave out --true_group_field")
    without = users[~users.isin(groups.index)]
    if len(without):
        raise PerPEFTError(
            f"{path}: {len(without)} users of the log have no {field}, for instance {without[0]!r}; add their lines, "
            "or leave out --true_group_field"
        )
    return pd.factorize(groups[users])[0]


def _reference(dataset: str, shared: Mapping[str, Any]) -> Config:
    return Config(_PLAIN_MODEL, dataset, config_dict=dict(shared) | _protocol_layer(dataset, shared))


def _files_and_words(files: Sequence[str], words: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for path in files:
        settings = changed(settings, read_yaml(settings_file(path)))
    settings = changed(settings, words)
    named = sorted({"model", "dataset", "run_folder"} & settings.keys())
    if named:
        raise PerPEFTError(f"{named[0]} cannot be a setting of all runs: use --models, --dataset and --runs_folder")
    return settings


def _protocol_layer(dataset: str, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol of the defaults, the data set and the user; what models have in their own files does not count."""
    of_dataset = properties_folder() / "dataset" / f"{dataset}.yaml"
    layers = defaults_of([RunSettings]) | read_yaml(properties_folder() / "overall.yaml")
    layers = changed(layers, read_yaml(of_dataset) if of_dataset.is_file() else {})
    layers = changed(layers, shared)
    return {key: layers[key] for key in PROTOCOL_KEYS}


def _check_overrides(spec: ModelSpec) -> None:
    for key in (*PROTOCOL_KEYS, *_OF_THE_COMPARISON):
        if key in spec.settings:
            raise PerPEFTError(
                f"{spec.name} sets {key}, which is the same for all models of a comparison: give --{key}=... instead"
            )


def _check_protocol(spec: ModelSpec, config: Config, protocol: Mapping[str, Any]) -> None:
    if config["MODEL_TYPE"] in _OF_LABELS:
        raise PerPEFTError(f"{spec.name} cannot be compared: {spec.model} predicts labels and does not rank items")
    different = [key for key in PROTOCOL_KEYS if config[key] != protocol[key]]
    if different:
        key = different[0]
        raise PerPEFTError(
            f"{spec.name} cannot be compared: RecBole gives {spec.model} {key} {config[key]}, the others have "
            f"{protocol[key]}"
        )


def _checkpoint_digest(run_folder: str) -> str:
    path = Path(run_folder) / "best.pth"
    try:
        return _hash_of(path, file_stamp(path))
    except OSError:  # the run itself tells what is missing
        return ""


@lru_cache
def _hash_of(path: Path, stamp: tuple[int, int, int]) -> str:
    """Hash of a file as it is at its stamp: all seeds of a model begin with one file, which is read once."""
    return large_file_hash(path)


def run_key(settings: Mapping[str, Any], device: str, data: str, code: str) -> str:
    """Identifies the numbers of a run.

    Args:
        settings: `Config.to_dict()`.
        device: kind of device, `cpu` or `cuda`.
        data: `data_fingerprint` of the data set.
        code: `code_fingerprint()`.

    Returns:
        16 hexadecimal digits. The model of a `global_run` counts by what is in its file now.
    """
    without_effect = model_keys(get_model(settings["model"]), *WITHOUT_EFFECT)
    relevant = {key: value for key, value in settings.items() if key not in without_effect}
    begins_with = [_checkpoint_digest(settings["global_run"])] if settings.get("global_run") else []
    text = json.dumps([relevant, device, data, code, *begins_with], sort_keys=True, default=str)
    return digest(text.encode(), size=8).hexdigest()


def _job(spec: ModelSpec, config: Config, seed: int, data: str, code: str, split: str | None) -> Job:
    settings = {"model": config["model"], "dataset": config["dataset"]} | config.to_dict() | {"seed": seed}
    settings["show_progress"] = False
    key = run_key(settings, config["device"].type, data, code)
    folder = Path(config["runs_folder"]) / f"{config['model']}-{config['dataset']}-{key}-seed{seed}"
    return Job(config["dataset"], spec, seed, key, folder, settings, split)
