"""A model class of one's own, given as it is: trained, loaded, resumed, and with a setting of its own."""

import pytest
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn

from recbole_perpeft import models
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models import get_model
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import load, resume, run


class Factors(GeneralRecommender):
    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["n_factors_of_mine"] or 8
        self.users, self.items = nn.Embedding(self.n_users, size), nn.Embedding(self.n_items, size)

    def calculate_loss(self, rows):
        better, worse = self.items(rows[self.ITEM_ID]), self.items(rows[self.NEG_ITEM_ID])
        return nn.functional.softplus(-(self.users(rows[self.USER_ID]) * (better - worse)).sum(-1)).mean()

    def full_sort_predict(self, rows):
        return (self.users(rows[self.USER_ID]) @ self.items.weight.T).view(-1)


@pytest.fixture
def forget(monkeypatch):
    """A function after which no class of a user is known, as in another process."""
    return lambda: monkeypatch.setattr(models._MODELS, "_added", {})


def test_a_class_is_trained_loaded_and_resumed(toy_settings, forget):
    settings = toy_settings | {"epochs": 1, "n_factors_of_mine": 16}
    folder = run(Factors, config_dict=settings)["run_folder"]
    _, model, *_ = load(folder)
    assert type(model) is Factors and model.users.embedding_dim == 16
    assert resume(folder, {"epochs": 2})["epochs"] == 2
    forget()
    with pytest.raises(PerPEFTError, match="no model named 'Factors'.*a class of your own is given itself as model"):
        load(folder)
    assert type(load(folder, {"model": Factors})[1]) is Factors
    forget()
    assert resume(folder, {"epochs": 3, "model": Factors})["epochs"] == 3


def test_another_class_than_that_of_the_run_is_refused(toy_settings):
    folder = run(Factors, config_dict=toy_settings | {"epochs": 1})["run_folder"]
    for again in (load, resume):
        with pytest.raises(PerPEFTError, match="is a run with model Factors, not SASRec"):
            again(folder, {"model": get_model("SASRec")})


def test_a_setting_that_the_class_does_not_read_is_refused(toy_settings):
    with pytest.raises(PerPEFTError, match="'n_factors_of_min', did you mean 'n_factors_of_mine'"):
        Config(Factors, config_dict=toy_settings | {"n_factors_of_min": 16})


@pytest.mark.parametrize("name", ["BPR", "PerPEFT"])
def test_a_class_with_the_name_of_another_model_is_refused(name):
    with pytest.raises(PerPEFTError, match="rename it|is taken"):
        get_model(type(name, (Factors,), {}))
