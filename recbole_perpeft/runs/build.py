"""Data set, loaders and model of a configuration: those of this package, and RecBole's for all else."""

from __future__ import annotations

import importlib

import numpy as np
from recbole.data.utils import get_dataloader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import ModelType, init_seed
from recbole.utils import get_trainer as get_recbole_trainer

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.atomic import prepare_dataset_folder
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.evaluation import evaluation_loader
from recbole_perpeft.data.history import union_of
from recbole_perpeft.data.loader import train_loader
from recbole_perpeft.data.log import with_checked_log
from recbole_perpeft.data.sampler import check_owners
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.ids import without_log
from recbole_perpeft.training.trainer import run_trainer

__all__ = ["build", "create_dataset", "data_preparation", "get_trainer"]

_DATASET_OF_TYPE = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}


def create_dataset(config: Config, ids: tuple[np.ndarray, np.ndarray] | None = None):
    """The data set of a run, by the model's `dataset_class` or RecBole's choice; never from a pickle.

    Args:
        config: settings.
        ids: tokens of users and items that stand in for the log.

    Raises:
        PerPEFTError: the files are missing or cannot be read.
    """
    if ids is None:
        prepare_dataset_folder(config)
    dataset_class = with_checked_log(
        getattr(config.model_class, "dataset_class", None) or _recbole_dataset_class(config)
    )
    try:
        return dataset_class(config) if ids is None else without_log(dataset_class, *ids)(config)
    except PerPEFTError:
        raise
    except (ValueError, KeyError) as error:
        raise PerPEFTError(f"cannot read the data set in {config.dataset_folder}: {error}") from error


def _recbole_dataset_class(config: Config) -> type:
    datasets = importlib.import_module("recbole.data.dataset")
    by_type = _DATASET_OF_TYPE.get(config["MODEL_TYPE"], "Dataset")
    return getattr(datasets, f"{config['model']}Dataset", getattr(datasets, by_type))


def data_preparation(config: Config, dataset) -> tuple:
    """Split a data set; every model is evaluated on the same candidates (`mask_history`).

    Returns:
        Train, valid and test loader.

    Raises:
        PerPEFTError: there is nothing to train on.
    """
    built = dataset.build()
    if not len(built[0]):
        raise PerPEFTError(
            f"{config['dataset']}: the train part of eval_args has no row for {config['model']}, as if all users have "
            "a single interaction: choose another split, or data in which users have more"
        )
    if isinstance(dataset, SequenceDataset):
        train_data = train_loader(config, built[0], config.model_class.train_draws(config))
    else:
        train_data = _recbole_train_loader(config, dataset, built[0], _train_sampler(config, dataset, built))
    return train_data, *(evaluation_loader(config, built, phase) for phase in ("valid", "test"))


def _train_sampler(config: Config, dataset, built):
    """RecBole's sampler of train negatives, by the train part alone; None if the model needs none.

    Raises:
        PerPEFTError: a user owns the whole catalogue.
    """
    negatives = config["train_neg_sample_args"]
    if negatives["distribution"] == "none":
        return None
    drawn = (negatives["distribution"], negatives["alpha"])
    if config["repeatable"]:
        return RepeatableSampler("train", built[0], *drawn).set_phase("train")
    check_owners(union_of(built), dataset.item_num, dataset.field2id_token[dataset.uid_field])
    return Sampler("train", built[0], *drawn).set_phase("train")


def _recbole_train_loader(config: Config, dataset, train_part, sampler):
    samplers = [sampler]
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        negatives = config["train_neg_sample_args"]
        samplers.append(KGSampler(dataset, negatives["distribution"], negatives["alpha"]))
    return get_dataloader(config, "train")(config, train_part, *samplers, shuffle=config["shuffle"])


def get_trainer(config: Config) -> type:
    """The trainer class of a run: the model's `trainer_class`, or RecBole's choice on top of `RunTrainer`."""
    own = getattr(config.model_class, "trainer_class", None)
    return own or run_trainer(get_recbole_trainer(config["MODEL_TYPE"], config["model"]))


def build(config: Config, ids: tuple[np.ndarray, np.ndarray] | None = None) -> tuple:
    """Data set, its loaders, and the model with fresh weights; `ids` as for `create_dataset`."""
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config, ids)
    loaders = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, loaders[0]._dataset).to(config["device"])
    return dataset, loaders, model
