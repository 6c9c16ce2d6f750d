"""Processes that train together end with what one process has that takes the same batches a step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import init_seed
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.morec import MoRec
from recbole_perpeft.nn.adapt.groups import GroupModules
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation
from recbole_perpeft.training.gradients import MeanGradient
from recbole_perpeft.training.workers import ALONE, Alone, share_of_batches, share_of_steps

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


DRAWN = {"eval_args": {"mode": "uni20"}}


@pytest.mark.parametrize(("model", "more"), [("PerPEFT", {}), ("IISAN", DRAWN), ("VIP5", {})])
def test_two_processes_equal_one_that_takes_two_batches_a_step(model, more, trained, in_processes):
    chosen = {"batches_a_step": 2, "eval_batch_size": 32} | more
    expected = trained(model, ALONE, "alone", **chosen)
    for found in in_processes(2, lambda workers: trained(model, workers, "together", **chosen)):
        check_same(found, expected)


def test_another_number_of_processes_goes_on_where_some_have_nothing_to_evaluate(trained, in_processes):
    chosen = {"batches_a_step": 3, "eval_batch_size": 100, "adaptation": "frozen"}
    expected = trained("MoRec", ALONE, "alone", **chosen | {"epochs": 2})
    in_processes(3, lambda workers: trained("MoRec", workers, "together", **chosen))
    for found in in_processes(2, lambda workers: trained("MoRec", workers, "together", **chosen | {"epochs": 2})):
        check_same(found, expected)


def test_every_worker_sees_that_the_loss_of_one_is_not_finite(trained, in_processes, monkeypatch):
    def fails(workers):
        loss = MoRec.calculate_loss
        factor = math.inf if workers.rank else 1.0
        monkeypatch.setattr(MoRec, "calculate_loss", lambda model, batch: loss(model, batch) * factor)
        with pytest.raises(PerPEFTError, match="training loss is .*inf"):
            trained("MoRec", workers, batches_a_step=2, adaptation="frozen")

    in_processes(2, fails)


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 7))
def test_every_batch_is_computed_once(n_batches, batches_a_step, size):
    team = [Alone(rank, size) for rank in range(size)]
    steps = [share_of_steps(n_batches, batches_a_step, each) for each in team]
    assert len({len(of_one) for of_one in steps}) == 1, "all take the same steps"
    numbers = [sorted(number for own in step for number in own) for step in zip(*steps, strict=True)]
    assert [number for step in numbers for number in step] == list(range(n_batches))
    assert all(len(step) == batches_a_step for step in numbers[:-1])
    parts = [share_of_batches(n_batches, each) for each in team]
    assert [number for part in parts for number in part] == list(range(n_batches))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Grouped(nn.Module):
    """A weight for all, and one for each group."""

    def __init__(self, n_groups):
        super().__init__()
        self.shared = nn.Linear(2, 2)
        self.own = GroupModules(nn.Linear(2, 1))
        self.own.personalise(n_groups)

    def forward(self, group, x):
        return self.own.of(group)(self.shared(x)).sum()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_groups_get_the_mean_of_their_own_batches_and_others_do_not_move(groups):
    torch.manual_seed(0)
    model, batches = Grouped(4), torch.randn(len(groups), 3, 2)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    before = {group: model.own.of(group).weight.clone() for group in range(4)}

    mean = torch.stack([model(*pair) for pair in zip(groups, batches, strict=True)]).mean()
    shared = torch.autograd.grad(mean, model.shared.weight)[0]
    of_group = {
        group: torch.autograd.grad(
            torch.stack([model(group, x) for g, x in zip(groups, batches, strict=True) if g == group]).mean(),
            model.own.of(group).weight,
        )[0]
        for group in set(groups)
    }
    gradient = MeanGradient(model, parameters, ALONE)
    for pair in zip(groups, batches, strict=True):
        model(*pair).backward()
        gradient.take()
    gradient.give(len(groups))
    torch.testing.assert_close(model.shared.weight.grad, shared)
    for group, expected in of_group.items():
        torch.testing.assert_close(model.own.of(group).weight.grad, expected)
    optimizer.step()
    for group in range(4):
        moved = not torch.equal(model.own.of(group).weight, before[group])
        assert moved == (group in groups)
