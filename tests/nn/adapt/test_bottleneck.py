"""Bottleneck adapters against their formula."""

import math

import pytest
import torch
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.bottleneck import AdaptedLayer, T5AdapterSettings, insert_t5_adapters


def gelu_tanh(value):
    return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def test_an_adapter_is_its_formula():
    torch.manual_seed(0)
    adapter = T5AdapterSettings(adapter_reduction=4, adapter_init="uniform").adapter(16).double()
    states = torch.randn(3, 16, dtype=torch.float64)
    down, up = adapter.down, adapter.up
    for row, output in zip(states, adapter(states), strict=True):
        inner = [
            gelu_tanh(sum(down.weight[i, j].item() * row[j].item() for j in range(16)) + down.bias[i].item())
            for i in range(4)
        ]
        for j in range(16):
            expected = row[j].item() + sum(up.weight[j, i].item() * inner[i] for i in range(4)) + up.bias[j].item()
            assert output[j].item() == pytest.approx(expected, abs=1e-12)


def test_an_adapter_starts_without_effect_and_learns():
    adapter = T5AdapterSettings().adapter(16)
    states = torch.randn(5, 16)
    assert torch.equal(adapter(states), states)
    adapter(states).square().sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


def test_an_adapter_has_the_published_number_of_parameters():
    adapter = T5AdapterSettings(adapter_reduction=8).adapter(512)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 66_112


def test_a_wrapped_projection_shows_its_weight():
    layer = nn.Linear(8, 8, bias=False)
    wrapped = AdaptedLayer(layer, T5AdapterSettings().adapter(8))
    assert wrapped.weight is layer.weight


def test_settings_and_models_that_do_not_fit_are_refused():
    with pytest.raises(PerPEFTError, match="adapter_sublayers: 'pooler'"):
        T5AdapterSettings(adapter_sublayers=["pooler"])
    with pytest.raises(PerPEFTError, match="adapter_reduction is 0"):
        T5AdapterSettings(adapter_reduction=0)
    with pytest.raises(PerPEFTError, match="leaves nothing of width 4"):
        T5AdapterSettings().adapter(4)
    with pytest.raises(PerPEFTError, match="has no self_attention"):
        insert_t5_adapters(nn.Sequential(nn.Linear(2, 2)), T5AdapterSettings())
