"""What an optimiser goes on from is looked at before it steps."""

import copy

import pytest
import torch
from torch import nn

from recbole_perpeft.training.checkpoint import load_optimizer
from recbole_perpeft.training.optimisers import Together

LEARNERS = {"Adam": {}, "AdamW": {"amsgrad": True}, "Adagrad": {}, "RMSprop": {}, "SGD": {"momentum": 0.9}}


def stepped(name):
    """An optimiser of several parameters, one without a gradient, after a step."""
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (2,), (), (4,))]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.1, **LEARNERS[name])
    for parameter in parameters[:3]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_that_a_step_has_left_is_taken(name):
    optimizer = stepped(name)
    load_optimizer(optimizer, copy.deepcopy(optimizer.state_dict()))
    both = Together([optimizer, stepped(name)])
    load_optimizer(both, copy.deepcopy(both.state_dict()))
    both.step()


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: Together([one])])
@pytest.mark.parametrize(("entry", "value"), [("exp_avg_sq", None), ("exp_avg", torch.ones(7))])
def test_a_state_that_no_step_leaves_is_refused(wrap, entry, value):
    optimizer = stepped("Adam")
    state = copy.deepcopy(optimizer.state_dict())
    if value is None:
        del state["state"][1][entry]
    else:
        state["state"][1][entry] = value
    whole = wrap(optimizer)
    with pytest.raises(ValueError, match=f"has no {entry}|{entry} is .* where the parameter is"):
        load_optimizer(whole, state if whole is optimizer else {"parts": [state]})
