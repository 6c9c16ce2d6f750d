"""Fused kernels of optimisers: the same steps but for their last digits, wherever an optimiser has them."""

import copy

import pytest
import torch
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import FUSED_LEARNERS, RunSettings
from recbole_perpeft.training.checkpoint import load_optimizer
from recbole_perpeft.training.optimisers import fused

MAKERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
IDS = {"peft_type": "ids", "id_embedding_reg": 0.0, "epochs": 1, "fused": True, "learner": "adamw"}


def parts(seed):
    """Parameters of two rates, with gradients but for one."""
    made = [
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed))) for shape in ((3, 2), (4,))
    ]
    made[0].grad = torch.full((3, 2), 0.5)
    return [{"params": [made[0]], "lr": 0.1}, {"params": [made[1]]}]


@pytest.mark.parametrize("learner", FUSED_LEARNERS)
def test_steps_are_those_of_the_plain_optimiser(learner):
    plain, other = (MAKERS[learner](parts(1), lr=0.01, weight_decay=0.1) for _ in range(2))
    quick = fused(other)
    assert type(quick) is type(plain)
    assert all(group["fused"] for group in quick.param_groups)
    for optimizer in (plain, quick):
        optimizer.step()
    load_optimizer(quick, copy.deepcopy(quick.state_dict()))
    for optimizer in (plain, quick):
        optimizer.step()
    for own, others in zip(plain.param_groups, quick.param_groups, strict=True):
        assert {key: own[key] for key in ("lr", "weight_decay")} == {
            key: others[key] for key in ("lr", "weight_decay")
        }
        torch.testing.assert_close(own["params"], others["params"])


@pytest.mark.parametrize("model", ["GlobalPEFT", "BPR"])
def test_a_trainer_has_them_where_they_are_asked_for(prepare, tmp_path, model):
    settings = IDS if model == "GlobalPEFT" else {"fused": True}
    optimizer = prepare(model, **settings).trainer(tmp_path).optimizer
    assert all(group["fused"] for group in optimizer.param_groups)


def test_sparse_tables_keep_an_optimiser_without_them(prepare, tmp_path):
    optimizer = prepare("GlobalPEFT", **IDS, sparse_ids=True, weight_decay=0.0).trainer(tmp_path).optimizer
    rest, tables = optimizer.parts
    assert isinstance(tables, torch.optim.SparseAdam)
    assert all(group["fused"] for group in rest.param_groups)


def test_an_optimiser_without_them_is_refused():
    with pytest.raises(PerPEFTError, match="adagrad has no fused kernel, set fused to False"):
        RunSettings(fused=True, learner="adagrad").check()
