"""What a model declares is known, checked, explained and searched over, and nothing else is."""

from dataclasses import dataclass

import pytest
import yaml
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Settings, classes_of, defaults_of, reachable, setting, settings_from
from recbole_perpeft.core.yaml_values import SettingsLoader, read_yaml
from recbole_perpeft.models import get_model, list_models
from recbole_perpeft.runs.config import Config, properties_folder
from recbole_perpeft.runs.help import settings_help
from recbole_perpeft.runs.keys import model_keys
from recbole_perpeft.studies.search.checks import check_search
from recbole_perpeft.studies.search.distributions import Choice
from recbole_perpeft.studies.search.space import Parameter, SearchSpace

READ = [
    pytest.param(name, cls, way, id="-".join([name, cls.__name__, *way.values()]))
    for name in list_models()
    for cls, way in reachable(classes_of(get_model(name)))
]


@pytest.mark.parametrize(("model", "cls", "way"), READ)
def test_every_setting_that_a_model_can_reach_is_read_and_can_be_searched_over(model, cls, way):
    values = Config(model, "aspects", config_dict=way).final_config_dict
    keys = [declared.name for declared in cls.declared() if declared.name not in way]
    config = Config(model, "aspects", config_dict=way | {key: values[key] for key in keys})
    assert config.unread_settings == {}
    assert config.settings_classes.count(cls) == 1
    space = SearchSpace(tuple(Parameter(key, Choice((values[key],))) for key in keys))
    check_search(space, {"model": model, "dataset": "aspects"} | way)


def test_a_setting_of_a_chosen_variant_is_known_and_one_of_another_is_not_read():
    config = Config("PerPEFT", "aspects", config_dict={"user_encoder": "iisan", "inner_size": 16})
    assert config.unread_settings == {} and config["inner_size"] == 16
    assert "dropout_prob" not in config, "of the other user encoder"
    unread = Config("PerPEFT", "aspects", config_dict={"inner_size": 16})
    sentence = "inner_size is a setting for user_encoder: iisan, PerPEFT does not read it as it is set"
    assert unread.unread_settings == {"inner_size": sentence}
    assert "inner_size" not in unread


@pytest.mark.parametrize("model", list_models())
def test_a_setting_has_one_declaration(model):
    found = {}
    for cls, _ in reachable((RunSettings, *classes_of(get_model(model)))):
        for declared in cls.declared():
            assert found.setdefault(declared.name, declared) == declared, f"{cls.__name__}.{declared.name}"
    assert all(declared.help.endswith(".") for declared in found.values())


@pytest.mark.parametrize("model", list_models())
def test_the_file_of_a_model_holds_only_what_differs_from_the_declarations(model):
    declared = defaults_of(cls for cls, _ in reachable((RunSettings, *classes_of(get_model(model)))))
    below = declared | read_yaml(properties_folder() / "overall.yaml")
    assert below.keys() == declared.keys()
    for base in reversed(get_model(model).__mro__):
        path = properties_folder() / "model" / f"{base.__name__}.yaml"
        own = read_yaml(path) if path.is_file() else {}
        assert not [key for key, value in own.items() if below[key] == value]
        below |= own


@pytest.mark.parametrize("model", [*list_models(), "SASRec"])
def test_help_is_yaml_with_the_defaults_of_the_model(model):
    text = settings_help(model)
    shown = yaml.load(text, Loader=SettingsLoader)
    values = Config(model, "nothing").to_dict()
    assert shown.pop("dataset") == "aspects"
    assert {key: value for key, value in shown.items() if values.get(key, value) != value} == {}
    read = {declared.name for cls in Config(model, "nothing").settings_classes for declared in cls.declared()}
    assert shown.keys() >= read
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(shown) + 1 and all(" # " in line for line in lines)


@dataclass(frozen=True)
class MySettings(Settings):
    """Of a user's own model."""

    n_factors: int = setting(8, "Width of a vector.", least=1)
    my_rate: float = setting(0.1, "A rate.", above=0, kind="rate")


class Declaring(GeneralRecommender):
    """Names its settings."""

    input_type = InputType.PAIRWISE
    settings_classes = (MySettings,)


class Reading(GeneralRecommender):
    """Reads settings as RecBole's models do."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.size = config["n_factors_of_mine"] or 8


class MyPerPEFT(get_model("PerPEFT")):
    """Adds to a model of this package."""

    settings_classes = (MySettings,)


def test_settings_of_a_users_own_model_are_known_checked_and_explained():
    config = Config(Declaring, "aspects", config_dict={"n_factors": "16"})
    assert settings_from(config, MySettings) == MySettings(n_factors=16)
    with pytest.raises(PerPEFTError, match="n_factors is 0: it must be a whole number, at least 1"):
        Config(Declaring, "aspects", config_dict={"n_factors": 0})
    with pytest.raises(PerPEFTError, match="unknown setting 'n_factor', did you mean 'n_factors'"):
        Config(Declaring, "aspects", config_dict={"n_factor": 3})
    assert "n_factors: 8 " in settings_help(Declaring)
    assert model_keys(Declaring, "rate")[-1] == "my_rate"


def test_a_users_model_may_read_settings_as_those_of_recbole_do():
    assert Config(Reading, "aspects", config_dict={"n_factors_of_mine": 16})["n_factors_of_mine"] == 16
    with pytest.raises(PerPEFTError, match="unknown setting 'n_factors_of_min'"):
        Config(Reading, "aspects", config_dict={"n_factors_of_min": 16})


def test_a_users_model_has_the_settings_of_its_base_class():
    config = Config(MyPerPEFT, "aspects", config_dict={"n_groups": 3, "n_factors": 4})
    assert config.unread_settings == {} and config["epochs"] == Config("PerPEFT", "shop")["epochs"]
    assert config["train_neg_sample_args"]["distribution"] == "none", "the loader of this package draws negatives"


def test_rates_are_those_that_a_model_declares_and_of_recboles_models_those_they_share():
    assert {"learning_rate", "weight_decay", "dropout_prob", "group_negative_ratio"} <= {*model_keys_of("PerPEFT")}
    assert {"lr_side_text", "hidden_dropout_prob", "popularity_power"} <= {*model_keys_of("IISAN")}
    assert model_keys_of("SASRec") == (
        *("learning_rate", "weight_decay", "dropout_prob", "hidden_dropout_prob", "attn_dropout_prob", "reg_weight"),
    )


def model_keys_of(name):
    return model_keys(get_model(name), "rate")
