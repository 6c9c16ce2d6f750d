"""Modules that groups of users own."""

import torch
from torch import nn

from recbole_perpeft.nn.adapt.groups import GroupModules, personalise


def test_groups_start_as_the_global_module_and_part():
    modules = GroupModules(nn.Linear(3, 2))
    modules.personalise(3)
    with torch.no_grad():
        modules.of(0).weight.add_(1)
    modules.personalise(2)
    assert list(modules) == ["global", "0", "1"] and modules.of(None) is modules["global"]
    assert torch.equal(modules.of(0).weight, modules.of(None).weight)
    assert len({id(parameter) for parameter in modules.parameters()}) == 6


def test_a_model_is_personalised_wherever_groups_own_something():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(GroupModules(nn.Linear(2, 2))))
    personalise(model, 2)
    assert list(model.state_dict()) == [
        f"{place}.{name}" for place in ("0", "1.0.global", "1.0.0", "1.0.1") for name in ("weight", "bias")
    ]
