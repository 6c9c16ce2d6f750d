"""What is not said of the evaluation stays as it is, and what cannot be meant is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.protocol import check_eval_args, laid_over, protocol_line
from recbole_perpeft.runs.config import Config

OURS = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": {"valid": "full", "test": "full"},
}
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "split": st.sampled_from([{"RS": [0.8, 0.1, 0.1]}, {"LS": "test_only"}]),
        "order": st.sampled_from(["TO", "RO"]),
        "group_by": st.sampled_from(["user", "none", None]),
        "mode": st.sampled_from(["uni100", {"valid": "pop5"}, {"test": "uni5"}, {"valid": "full", "test": "uni5"}]),
    },
)


@given(layers=st.lists(PARTS, max_size=3))
def test_a_layer_changes_what_it_names(layers):
    settings = {"eval_args": OURS}
    for layer in layers:
        laid_over(settings, {"eval_args": layer})
    for name in ("split", "order", "group_by"):
        assert settings["eval_args"][name] == [layer[name] for layer in [OURS, *layers] if name in layer][-1]
    for phase in ("valid", "test"):
        modes = [layer["mode"] for layer in [OURS, *layers] if "mode" in layer]
        modes = [mode[phase] if isinstance(mode, dict) else mode for mode in modes if not _lacks(mode, phase)]
        assert settings["eval_args"]["mode"][phase] == modes[-1]


def _lacks(mode, phase):
    return isinstance(mode, dict) and phase not in mode


@pytest.mark.parametrize("model", ["BPR", "SASRec", "PerPEFT"])
def test_a_model_keeps_our_protocol_but_for_the_part_that_is_named(model):
    config = Config(model, "ml-100k", config_dict={"eval_args": "{'mode': 'uni100'}"})
    assert config["eval_args"] == OURS | {"mode": {"valid": "uni100", "test": "uni100"}}


def test_files_and_words_each_name_their_part(tmp_path):
    (tmp_path / "one.yaml").write_text("eval_args: {split: {LS: test_only}}\n")
    config = Config("BPR", "ml-100k", [tmp_path / "one.yaml"], {"eval_args": "{mode: {test: pop5}}"})
    assert config["eval_args"] == OURS | {"split": {"LS": "test_only"}, "mode": {"valid": "full", "test": "pop5"}}
    assert Config(config_dict=config.to_dict())["eval_args"] == config["eval_args"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mod": "uni100"}, "no part 'mod'.*did you mean mode"),
        ({"mode": {"vaild": "uni100"}}, "mode has no part 'vaild'"),
        ({"order": "time"}, "order is 'time'; choose TO or RO"),
        ({"group_by": "item"}, "group_by is 'item'"),
        ({"split": {"LS": "both"}}, "split is .*valid_only"),
        ({"split": {"RS": [0.8, 0.2]}}, "split is .*of the train, valid and test part"),
        ({"split": {"RS": [0, 0.5, 0.5]}}, "split is"),
        ({"split": {"RS": [0.8, 0.1, -0.1]}}, "split is"),
        ({"split": {"LS": "test_only", "RS": [8, 1, 1]}}, "split is"),
        ({"split": "LS"}, "split is"),
        ({"split": {}}, "split is"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(PerPEFTError, match=message):
        Config("BPR", "ml-100k", config_dict={"eval_args": arguments})


@pytest.mark.parametrize("interval", ["5", ">=5", "[5,", "[5]", "[a,b]", "[7,3]", "[1,2];3"])
@pytest.mark.parametrize("key", ["user_inter_num_interval", "item_inter_num_interval", "val_interval"])
def test_what_is_no_interval_is_refused(key, interval):
    """RecBole would leave the filter out."""
    value = {"timestamp": interval} if key == "val_interval" else interval
    with pytest.raises(PerPEFTError, match=f"{key}.* must be"):
        Config("BPR", "ml-100k", config_dict={key: value})


@pytest.mark.parametrize("interval", ["[5,inf)", "(0, 3]", "[1,3];(7.5,9]", "[-inf,2)", "~"])
def test_intervals_are_those_of_recbole(interval):
    config = Config("BPR", "ml-100k", config_dict={"user_inter_num_interval": interval})
    assert config["user_inter_num_interval"] == (None if interval == "~" else interval)
    Config("BPR", "ml-100k", config_dict={"val_interval": f"{{'timestamp': '{interval}'}}"} if interval != "~" else {})


def test_values_of_a_column_are_listed():
    Config("BPR", "ml-100k", config_dict={"val_interval": {"place": ["p", "q"]}})


@pytest.mark.parametrize("split", [{"RS": [8, 1, 1]}, {"RS": (0.8, 0, 0.2)}, {"LS": "valid_only"}])
def test_splits_that_can_be_meant(split):
    check_eval_args(OURS | {"split": split})


def test_the_line_names_the_whole_protocol():
    settings = {"eval_args": OURS, "benchmark_filename": None, "mask_history": "all", "topk": [10, 20]}
    line = "protocol: split LS valid_and_test, order TO, group_by user, mode valid full test full, mask_history all, "
    assert protocol_line(settings) == line + "topk [10, 20]"
    parts = settings | {"benchmark_filename": ["train", "test"]}
    line = "protocol: order TO, mode valid full test full, benchmark_filename [train, test], mask_history all, "
    assert protocol_line(parts) == line + "topk [10, 20]"
