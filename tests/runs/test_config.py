import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import dataset_arguments

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.yaml_values import SettingsLoader, parse_value, read_yaml
from recbole_perpeft.models import get_model, list_models, list_recbole_models
from recbole_perpeft.runs.config import Config, properties_folder


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("false", False),
        ("None", None),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("1e-4", 1e-4),
        ("-3", -3),
        ("[1, 2]", [1, 2]),
        ("[NDCG, Hit]", ["NDCG", "Hit"]),
        ("{'r': 4}", {"r": 4}),
        ("{r: 4, target: [q, v]}", {"r": 4, "target": ["q", "v"]}),
        ("a/b-c", "a/b-c"),
        ("[0,inf)", "[0,inf)"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("1+2j", "1+2j"),
        ("", ""),
    ],
)
def test_strings_are_read_as_literals_and_never_run(text, value):
    assert parse_value("key", text) == value
    assert type(parse_value("key", text)) is type(value)


def test_intervals_stay_strings_because_recbole_parses_them():
    assert parse_value("user_inter_num_interval", "[5,10]") == "[5,10]"


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers(), max_size=4)))
def test_every_plain_value_survives_its_repr(value):
    assert parse_value("key", repr(value)) == value or value in (float("inf"), float("-inf"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("1E+3", 1000.0), ("3", 3), ("1.2.3", "1.2.3"), ("e4", "e4")],
)
def test_yaml_numbers_are_those_of_recbole(text, value):
    assert yaml.load(f"key: {text}", Loader=SettingsLoader) == {"key": value}


def test_the_yaml_loaders_of_others_are_left_alone():
    Config("SASRec", "ml-100k")
    assert yaml.load("key: 1e-4", Loader=yaml.FullLoader) == {"key": "1e-4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- a", "key: value"), (None, "cannot read"), ("1: 2", "line 1: a key")],
)
def test_broken_settings_files_are_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PerPEFTError, match=message) as caught:
        read_yaml(path)
    assert "broken.yaml" in str(caught.value)


def test_layers_win_in_order(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("learning_rate: 0.1\nepochs: 7\nseed: 5\n")
    second.write_text("learning_rate: 0.2\nepochs: 8\n")
    config = Config("SASRec", "ml-100k", [str(first), str(second)], {"epochs": "9"})
    assert (config["seed"], config["learning_rate"], config["epochs"]) == (5, 0.2, 9)
    assert config["hidden_size"] == 64, "RecBole's own default of the model"
    assert config["MAX_ITEM_LIST_LENGTH"] == 10, "our overall.yaml stands above RecBole's"


def test_settings_of_a_dataset_may_depend_on_the_model(tmp_path, monkeypatch):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "overall.yaml").write_bytes((properties_folder() / "overall.yaml").read_bytes())
    (tmp_path / "dataset" / "shop.yaml").write_text(
        "train_batch_size: 8\nlearning_rate: 0.5\nmodels:\n  SASRec: {learning_rate: 0.25}\n"
    )
    monkeypatch.setattr("recbole_perpeft.runs.config.properties_folder", lambda: tmp_path)
    assert Config("SASRec", "shop")["learning_rate"] == 0.25
    assert Config("GRU4Rec", "shop")["learning_rate"] == 0.5
    assert Config("GRU4Rec", "shop")["train_batch_size"] == 8


PRESETS = [
    *((model, "strong") for model in ("PerPEFT", "GlobalPEFT", "IISAN", "MoRec")),
    *((path.stem.split("_")[0].upper(), path.stem) for path in (properties_folder() / "preset").glob("*_*.yaml")),
]


@pytest.mark.parametrize(("model", "preset"), sorted(PRESETS))
def test_a_preset_is_named_without_its_folder(model, preset, tmp_path, monkeypatch):
    path = properties_folder() / "preset" / f"{preset}.yaml"
    config = Config(model, "shop", [path.stem])
    assert all(config[key] == value for key, value in read_yaml(path).items())
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.stem).write_text("text_encoder: mine")
    assert Config("IISAN", "shop", [path.stem])["text_encoder"] == "mine", "a file of that name is meant"


def test_a_model_has_the_settings_of_its_base_class():
    perpeft, global_peft = (Config(model, "aspects") for model in ("PerPEFT", "GlobalPEFT"))
    assert global_peft["hidden_size"] == perpeft["hidden_size"] is not None
    assert global_peft["epochs"] == perpeft["epochs_global"] + perpeft["epochs"]


def test_the_command_line_of_the_process_is_not_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=77", "--nonsense"])
    assert Config("SASRec", "ml-100k")["epochs"] != 77


def test_cuda_visible_devices_is_left_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    Config("SASRec", "ml-100k", config_dict={"gpu_id": "0"})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert str(Config("SASRec", "ml-100k")["device"]) == "cuda:0"
    assert str(Config("SASRec", "ml-100k", config_dict={"use_gpu": False})["device"]) == "cpu"
    with pytest.raises(PerPEFTError, match="gpu_id '1'"):
        Config("SASRec", "ml-100k", config_dict={"gpu_id": 1})


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        ("SASRec", {"nproc": 2}, "SASRec trains in one process"),
        ("ContentKNN", {"batches_a_step": 2}, "ContentKNN trains in one process"),
        ("MoRec", {"world_size": 4}, "follow from nproc"),
        ("MoRec", {"local_rank": 0}, "follow from nproc"),
        ("MoRec", {"nproc": 3, "batches_a_step": 2}, "set nproc to 2 or less"),
    ],
)
def test_several_processes_that_cannot_be_are_refused(model, settings, sentence):
    with pytest.raises(PerPEFTError, match=sentence):
        Config(model, "ml-100k", config_dict=settings)


def test_a_run_keeps_the_batches_of_a_step_whatever_number_of_processes_goes_on_with_it():
    config = Config("MoRec", config_dict={"nproc": 2})
    assert config["batches_a_step"] == 2
    assert Config(config_dict=config.to_dict() | {"model": "MoRec", "nproc": 1})["batches_a_step"] == 2


@pytest.mark.parametrize("wrong", [{"learnng_rate": 1}, {"Learning_Rates": 1}])
def test_an_unknown_key_is_refused_with_the_closest_one(wrong):
    with pytest.raises(PerPEFTError, match="did you mean 'learning_rate'"):
        Config("SASRec", "ml-100k", config_dict=wrong)


def test_an_unknown_key_in_a_file_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("mask_histroy: all\n")
    with pytest.raises(PerPEFTError, match="did you mean 'mask_history'"):
        Config("SASRec", "ml-100k", [str(path)])


def test_a_key_of_another_model_is_reported_but_not_refused(caplog):
    Config("SASRec", "ml-100k", config_dict={"nv": 3})
    assert "SASRec does not read it" in caplog.text


@pytest.mark.parametrize("model", ["SASRec", "BPR", "BERT4Rec", "LightGCN", "SASRecF", "DeepFM", "FPMC"])
def test_plain_settings_give_the_same_settings_again(model):
    config = Config(model, "ml-100k", config_dict={"seed": 3})
    again = Config(config_dict=config.to_dict())
    assert {key: str(value) for key, value in again.final_config_dict.items()} == {
        key: str(value) for key, value in config.final_config_dict.items()
    }
    assert yaml.safe_load(yaml.safe_dump(config.to_dict())) == config.to_dict()


def test_data_path_survives_the_round_trip(toy_settings):
    config = Config("SASRec", config_dict=toy_settings)
    assert Config(config_dict=config.to_dict()).dataset_folder == Path(toy_settings["data_path"]) / "toy"


@pytest.mark.parametrize(
    ("model", "distribution"),
    [("SASRec", "none"), ("BERT4Rec", "none"), ("BPR", "uniform"), ("FPMC", "uniform"), ("LightGCN", "uniform")],
)
def test_negatives_fit_the_loss_without_a_setting(model, distribution):
    assert Config(model, "ml-100k")["train_neg_sample_args"]["distribution"] == distribution


def test_a_bpr_loss_draws_negatives():
    config = Config("SASRec", "ml-100k", config_dict={"loss_type": "BPR"})
    assert config["train_neg_sample_args"]["distribution"] == "uniform"


@pytest.mark.parametrize(("model", "loss"), [("SASRec", "CE"), ("GRU4Rec", "CE"), ("VIP5", "CE"), ("BPR", None)])
def test_a_preset_of_content_models_leaves_other_models_their_losses(model, loss):
    config = Config(model, "aspects", ["strong"])
    assert config["loss_type"] == loss
    assert config["train_neg_sample_args"]["distribution"] == ("uniform" if model == "BPR" else "none")
    assert "sampled_softmax" in config.unread_settings["loss_type"]
    assert Config("IISAN", "aspects", ["strong"])["loss_type"] == "sampled_softmax"


def test_a_loss_that_nobody_has_is_told():
    with pytest.raises(PerPEFTError, match="loss_type is 'ce': SASRec has BPR and CE; leave it out for CE"):
        Config("SASRec", "aspects", config_dict={"loss_type": "ce"})


def test_click_models_keep_their_own_protocol():
    config = Config("DeepFM", "ml-100k")
    assert config["eval_args"]["mode"] == {"valid": "labeled", "test": "labeled"}
    assert config["metrics"] == ["AUC", "LogLoss"]


def test_recboles_global_lists_do_not_grow():
    before = list(dataset_arguments)
    Config("SASRec", "ml-100k")
    assert dataset_arguments == before


@pytest.mark.parametrize("settings", [{"save_dataset": True}, {"dataloaders_save_path": "x.pth"}])
def test_pickled_data_is_refused(settings):
    with pytest.raises(PerPEFTError, match="pickled"):
        Config("SASRec", "ml-100k", config_dict=settings)


@pytest.mark.parametrize(
    ("settings", "message"), [({"metrics": ["Foo"]}, "Foo"), ({"topk": [0]}, "topk"), ({"eval_args": 3}, "eval_args")]
)
def test_values_that_recbole_refuses_are_our_error(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        Config("SASRec", "ml-100k", config_dict=settings)


@pytest.mark.parametrize("folder", ["dataset", "preset"])
def test_every_choice_for_a_data_set_or_a_preset_is_commented(folder):
    for path in (properties_folder() / folder).glob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and line[0].isalpha() and line.split(":")[1].strip() not in ("", "#"):
                assert "#" in line, f"{path.name}: {line}"


def test_models_are_found_by_name_and_by_class():
    assert get_model("SASRec").__name__ == "SASRec"
    assert get_model(get_model("BPR")) is get_model("BPR")
    assert set(list_models()) >= {"PerPEFT", "GlobalPEFT"}
    assert "LightGCN" in list_recbole_models()


@pytest.mark.parametrize(
    ("name", "suggestion"), [("sasrec", "SASRec"), ("PerPeft", "PerPEFT"), ("GRU4Recc", "GRU4Rec")]
)
def test_an_unknown_model_is_refused_with_similar_names(name, suggestion):
    with pytest.raises(PerPEFTError, match=f"did you mean .*{suggestion}"):
        get_model(name)


@pytest.mark.parametrize("name", list_models())
def test_every_registered_model_can_be_imported(name):
    assert get_model(name).__name__ == name


@pytest.mark.parametrize(
    ("settings", "peft_config"),
    [
        ({}, {"lora_dropout": 0.0}),
        ({"peft_type": "LoRA"}, {"lora_dropout": 0.0}),
        ({"peft_type": "ia3"}, {}),
        ({"peft_type": "none"}, {}),
        ({"peft_type": "vera", "peft_config": {"r": 8}}, {"r": 8}),
        ({"peft_config": {"r": 2}}, {"r": 2}),
    ],
)
def test_the_defaults_of_a_peft_method_do_not_outlive_it(settings, peft_config, tmp_path, monkeypatch):
    properties = tmp_path / "properties"
    shutil.copytree(properties_folder(), properties)
    (properties / "dataset" / "toy.yaml").write_text("peft_config: {lora_dropout: 0.0}\n")
    monkeypatch.setattr("recbole_perpeft.runs.config.properties_folder", lambda: properties)
    assert Config("PerPEFT", "toy", config_dict=settings)["peft_config"] == peft_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config_files": "strong"}, "config_files is not supported: files cannot name others"),
        ({"device": "cuda:1"}, "device is not supported: it follows from use_gpu"),
        ({"valid_metric_bigger": False}, "valid_metric_bigger is not supported"),
        ({"data_path": None}, "data_path is empty"),
        ({"valid_metric": ""}, "valid_metric is empty"),
        ({"metrics": []}, "metrics is empty"),
        ({"topk": []}, "topk is empty"),
        ({"transform": "mask"}, "transform is .mask.: it must be one of mask_itemseq"),
        ({"eval_args": {"mode": "uni0"}}, "mode is 'uni0'; choose full, drawn candidates"),
        ({"eval_args": {"mode": {"valid": "pop-5"}}}, "mode is 'pop-5'"),
        ({"clip_grad_norm": {"max_nrm": 5}}, "clip_grad_norm is .*max_norm: 5"),
        ({"clip_grad_norm": {"max_norm": -1}}, "clip_grad_norm is"),
        ({"learning_rate": 10**400}, "learning_rate is"),
    ],
    ids=str,
)
def test_what_would_be_left_out_or_fail_later_is_refused(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        Config("SASRec", "aspects", config_dict=settings)


def test_negatives_of_our_loaders_are_their_own(caplog):
    config = Config(
        "GlobalPEFT", "aspects", config_dict={"train_neg_sample_args": {"sample_num": 50, "dynamic": True}}
    )
    assert config["train_neg_sample_args"]["distribution"] == "none"
    assert "GlobalPEFT does not read it" in caplog.text
    with pytest.raises(PerPEFTError, match="sample_num is 0"):
        Config("BPR", "aspects", config_dict={"train_neg_sample_args": {"sample_num": 0}})


@pytest.mark.parametrize("text", ["2024.10", "1e3", "007", "true"])
def test_names_that_look_like_numbers_stay_text(text, tmp_path):
    given = {"data_path": text, "runs_folder": text, "cache_folder": text, "run_folder": text}
    (tmp_path / "a.yaml").write_text("".join(f"{key}: '{value}'\n" for key, value in given.items()))
    for config in (Config("Pop", "x", config_dict=given), Config("Pop", "x", [str(tmp_path / "a.yaml")])):
        assert config.dataset_folder == Path(text) / "x" and config["run_folder"] == text
    for nothing in ("null", "~", "None"):
        assert Config("Pop", "x", config_dict={"run_folder": nothing})["run_folder"] is None
    assert Config("Pop", "x", config_dict={"run_folder": 2024})["run_folder"] == "2024"
    Config("Pop", "x", config_dict={"clip_grad_norm": {"max_norm": 1, "norm_type": "inf", "error_if_nonfinite": True}})
