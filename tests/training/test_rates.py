import pytest
import torch
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training.rates import LearningRateSettings

RATES = {"lr_side_text": 1.0, "lr_side_image": 2.0, "lr_backbone_text": 3.0, "lr_backbone_image": 4.0}


class Content(nn.Module):
    def __init__(self):
        super().__init__()
        self.names = ["side_text", "side_image", "backbone_text", "backbone_image", "recsys"]
        self.parts = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in self.names})
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def parameter_groups(self):
        return {f"parts.{name}": name for name in self.names}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.item_encoder = nn.Module()
        self.item_encoder.content_encoder = Content()
        self.user_encoder = nn.Linear(2, 2)


def test_every_trained_parameter_has_the_rate_of_its_group():
    model = Model()
    groups = LearningRateSettings(learning_rate=5.0, param_groups="official", **RATES).groups(model)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {"side_text": 1.0, "side_image": 2.0, "backbone_text": 3.0, "backbone_image": 4.0, "recsys": 5.0}
    content = model.item_encoder.content_encoder
    assert {name: rate_of[id(content.parts[name])] for name in content.names} == expected
    assert {rate_of[id(parameter)] for parameter in model.user_encoder.parameters()} == {5.0}
    assert id(content.frozen) not in rate_of
    assert sum(len(group["params"]) for group in groups) == 7


def test_uniform_is_one_rate_for_all():
    model = Model()
    assert list(LearningRateSettings(learning_rate=1.0).groups(model)) == list(model.parameters())


@pytest.mark.parametrize("key", ["learning_rate", *RATES])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_wrong_rates_name_the_key(key, value):
    with pytest.raises(PerPEFTError, match=key):
        LearningRateSettings(**({"learning_rate": 1.0} | {key: value}))
