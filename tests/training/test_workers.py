"""Processes that train together end with what one process has that takes the same batches a step."""

import pytest
import torch
from recbole.utils import init_seed

from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation
from recbole_perpeft.training.workers import ALONE

PRECISE = {
    "metric_decimal_place": 12,
    "train_windows": "newest",
    "epochs": 1,
    "epochs_global": 1,
    "weight_decay": 0.01,
    "learner": "adamw",
}


@pytest.fixture
def trained(aspects_settings, tmp_path):
    """Trains in some processes; what a run leaves behind of weights and numbers."""

    def train(model, workers, folder="run", **settings):
        config = Config(model, config_dict=aspects_settings | PRECISE | settings)
        (tmp_path / folder).mkdir(exist_ok=True)
        config["checkpoint_dir"] = str(tmp_path / folder)
        init_seed(config["seed"], True)
        train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
        model = config.model_class(config, train_data.dataset)
        trainer = model.trainer_class(config, model, workers)
        if trainer.last_file.is_file():
            trainer.resume_checkpoint(trainer.last_file, train_data)
        trainer.fit(train_data, valid_data, verbose=False)
        state = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        found = [{key: value for key, value in row.items() if "seconds" not in key} for row in trainer.history]
        return {"state": state, "history": found, "test": dict(trainer.evaluate(test_data))}

    return train


def check_same(found, expected):
    losses, expected_losses = ([row["train_loss"] for row in run["history"]] for run in (found, expected))
    assert losses == pytest.approx(expected_losses, rel=1e-7)
    ours, theirs = ([row | {"train_loss": 0} for row in run["history"]] for run in (found, expected))
    assert ours == theirs
    assert found["test"] == expected["test"]
    assert found["state"].keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        assert torch.allclose(found["state"][name], tensor, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("model", ["PerPEFT", "MoRec", "IISAN", "VIP5"])
def test_two_processes_equal_one_that_takes_two_batches_a_step(model, trained, in_processes):
    settings = {"batches_a_step": 2, "eval_batch_size": 32}
    expected = trained(model, ALONE, "alone", **settings)
    for found in in_processes(2, lambda workers: trained(model, workers, "together", **settings)):
        check_same(found, expected)
