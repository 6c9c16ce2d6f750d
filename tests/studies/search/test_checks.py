"""Searches that cannot work are refused before anything starts, by the command line and by its parts."""

import pytest

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.search.checks import check_fixed, check_search
from recbole_perpeft.studies.search.searchers import check_names
from recbole_perpeft.studies.search.session import NewSearch
from recbole_perpeft.studies.search.space import max_epochs, read_space


@pytest.fixture
def space_of(tmp_path):
    def read(text):
        (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
        return read_space(tmp_path / "space.yaml")

    return read


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("PerPEFT", "learning_rte: {choice: [0.1]}", "did you mean 'learning_rate'"),
        ("SASRec", "learning_rate: {choice: [0.1]}\nepoch: 3", "did you mean 'epochs'"),
        ("PerPEFT", "side_rank_text: {choice: [8]}", "setting of IISAN"),
        ("PerPEFT", "dropout_prob: {uniform: [0.0, 1.5]}", "dropout_prob cannot be 1.5"),
        ("PerPEFT", "learning_rate: {uniform: [-1, 1]}", "learning_rate cannot be -1"),
        ("PerPEFT", "n_groups: {choice: [2, 0]}", "n_groups cannot be 0"),
        ("PerPEFT", "n_groups: {choice: [2, many]}", "n_groups cannot be 'many'"),
        ("PerPEFT", "n_groups: {choice: [2.5, 3]}", "n_groups cannot be 2.5"),
        ("PerPEFT", "n_groups: {choice: [[2, 3]]}", "n_groups cannot be \\[2, 3\\]"),
        ("SASRec", "train_batch_size: {choice: [0, 64]}", "train_batch_size cannot be 0"),
        ("PerPEFT", "content_weight.x: {choice: [1]}", "has no entry x"),
        ("PerPEFT", "learning_rate: {choice: [0.1], when: {peft_typ: lora}}", "no setting"),
        ("PerPEFT", "valid_metric: {choice: [NDCG@10, Hit@10]}", "cannot search over valid_metric"),
        ("PerPEFT", "nproc: {choice: [1, 2]}", "cannot search over nproc: devices_per_trial"),
        ("PerPEFT", "seed: 1\ndataset: {choice: [aspects, toy]}", "cannot search over dataset"),
    ],
)
def test_settings_and_values_that_do_not_work_are_refused(space_of, model, text, message):
    space = space_of(text)
    with pytest.raises(PerPEFTError, match=message):
        check_search(space, {"model": model, "dataset": "aspects"} | space.fixed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_metric": "NDCG@99"}, "NDCG@99"),
        ({"valid_metric": "NDGC@20"}, "NDGC@20"),
        ({"metrics": ["NDGC", "Hit"]}, "(?i)ndgc"),
        ({"eval_step": 0}, "eval_step is 0"),
    ],
)
def test_metrics_and_settings_of_the_search_are_checked(space_of, settings, message):
    space = space_of("learning_rate: {choice: [0.001]}")
    with pytest.raises(PerPEFTError, match=message):
        check_search(space, {"model": "SASRec", "dataset": "aspects"} | settings)


def test_a_setting_is_not_asked_for_and_searched_over(space_of):
    space = space_of("learning_rate: {choice: [0.001]}")
    with pytest.raises(PerPEFTError, match="learning_rate is searched over and fixed at 0.1: choose one"):
        NewSearch("SASRec", "aspects", {"learning_rate": {"choice": [0.001]}}, None, {"learning_rate": 0.1}).estimate()
    check_fixed(space, {"epochs": 3})
    of_entries = space_of("peft_config.r: {choice: [4, 8]}")
    check_fixed(of_entries, {"peft_config": {"lora_alpha": 3}})
    with pytest.raises(PerPEFTError, match="peft_config.r is searched over and fixed at {'r': 8}"):
        check_fixed(of_entries, {"peft_config": {"r": 8}})


def test_a_search_begins_with_what_files_and_presets_say():
    space = {"learning_rate": {"choice": [0.001, 0.002]}, "hidden_size": {"choice": [16, 32]}}
    search = NewSearch("GlobalPEFT", "aspects", space, ["strong"], start={"hidden_size": 32})
    session = search._checked()[2]
    assert session.space.point_of(session.config.to_dict()) == {"learning_rate": 3e-3, "hidden_size": 32}


def test_values_that_need_each_other_are_possible(space_of):
    space = space_of("peft_type: {choice: [lora, ia3]}\npeft_config.r: {choice: [4], when: {peft_type: lora}}")
    config = check_search(space, {"model": "PerPEFT", "dataset": "aspects"})
    assert config["peft_type"] == "lora"


@pytest.mark.parametrize(
    ("searcher", "scheduler", "text", "message"),
    [
        ("evolution", "asha", "a: {choice: [1]}", "no searcher 'evolution'.*random, grid, optuna, hyperopt"),
        ("random", "hyperband", "a: {choice: [1]}", "no scheduler 'hyperband'.*asha, median, pbt, none"),
        ("random", "pbt", "hidden_size: {choice: [1]}", "none that may change"),
    ],
)
def test_names_are_checked(space_of, searcher, scheduler, text, message):
    with pytest.raises(PerPEFTError, match=message):
        check_names(searcher, scheduler, space_of(text), ["learning_rate"])


def test_a_searcher_that_is_not_installed_says_what_to_install(space_of, monkeypatch):
    monkeypatch.setattr("recbole_perpeft.studies.search.searchers.find_spec", lambda name: None)
    with pytest.raises(PerPEFTError, match="pip install optuna"):
        check_names("optuna", "asha", space_of("a: {choice: [1]}"), [])


def test_a_searcher_that_chooses_itself_takes_no_grid(space_of, monkeypatch):
    monkeypatch.setattr("recbole_perpeft.studies.search.searchers.find_spec", lambda name: object())
    with pytest.raises(PerPEFTError, match="write choice in place of grid"):
        check_names("hyperopt", "asha", space_of("a: {grid: [1]}"), [])


def test_epochs_of_all_stages_count(space_of):
    space = space_of("epochs: {choice: [4, 7]}")
    for model, expected in (("PerPEFT", 17), ("GlobalPEFT", 7), ("SASRec", 7)):
        assert max_epochs(check_search(space, {"model": model, "dataset": "aspects"}), space) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--searcher=grid"], "infinite"),
        (["--searcher=grid", "--num_samples=3"], "leave out --num_samples"),
        (["--num_samples=0"], "at least 1"),
        (["--num_samples=many"], "whole number"),
        (["--reduction_factor=1"], "above 1"),
        (["--learning_rte=1"], "did you mean 'learning_rate'"),
        (["--num_sample=3"], "did you mean --num_samples?"),
        (["--sheduler=asha"], "did you mean --scheduler?"),
        (["fast"], "cannot make sense of 'fast'"),
        (["--searcher"], "--searcher needs a value"),
        (["--model=PerPFT"], "PerPEFT"),
        (["--search=nowhere.yaml"], "nowhere.yaml"),
        (["--resume=nowhere"], "not the folder of a search"),
        (["--resume=nowhere", "--epochs=3"], "leave out --epochs"),
        (["--resume=nowhere", "--output=here"], "not the folder of a search"),
        (["--model=FPMC"], "no search space comes with the package for FPMC"),
        (["--valid_metric=Bingo@3"], "Bingo@3"),
        (["--data_path=nowhere", "--dataset=toy"], "no data set toy"),
    ],
)
def test_the_command_line_starts_nothing(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("learning_rate: {uniform: [0.001, 0.1]}", encoding="utf-8")
    given = {word.partition("=")[0] for word in words}
    space = [] if "--model=FPMC" in words or {"--resume", "--search"} & given else ["--search=space.yaml"]
    model = [] if {"--resume", "--model"} & given else ["--model=SASRec"]
    assert main(["search", *model, *space, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "searches").exists()


def test_an_output_folder_is_not_overwritten(tmp_path, capsys, toy_path):
    (tmp_path / "space.yaml").write_text("learning_rate: {uniform: [0.001, 0.1]}", encoding="utf-8")
    words = ["--model=SASRec", "--dataset=toy", f"--data_path={toy_path}", f"--search={tmp_path / 'space.yaml'}"]
    assert main(["search", *words, f"--output={toy_path}"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_help(capsys):
    assert main(["search", "--help"]) == 0
    assert "--num_samples" in capsys.readouterr().out


def test_a_search_that_was_killed_before_its_settings_were_written_starts_anew(
    tmp_path, capsys, toy_path, monkeypatch
):
    monkeypatch.setattr("recbole_perpeft.studies.search.session._Search.carry_out", lambda self, folder: 1 / 0)
    (tmp_path / "space.yaml").write_text("learning_rate: {uniform: [0.001, 0.1]}", encoding="utf-8")
    output = tmp_path / "out"
    output.mkdir()
    for name in (".search.yaml.draft", ".space.yaml.draft", "space.yaml", "mine"):
        (output / name).write_text("learning_r")
    words = ["--model=BPR", "--dataset=toy", f"--data_path={toy_path}", f"--search={tmp_path / 'space.yaml'}"]
    assert main(["search", *words, f"--output={output}"]) == 2 and "is not empty" in capsys.readouterr().err
    (output / "mine").unlink()
    assert main(["search", *words, f"--output={output}"]) == 1 and "ZeroDivisionError" in capsys.readouterr().err
    assert (output / "space.yaml").read_text() == (tmp_path / "space.yaml").read_text()
    assert sorted(path.name for path in output.iterdir()) == ["search.yaml", "space.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval_args.mode: {choice: [full, uni10]}", "cannot search over eval_args.mode: .*one protocol"),
        ("learning_rate: {choice: [0.1]}\nmodel: Pop", "the search space names the model Pop: name it by --model"),
    ],
)
def test_trials_are_of_one_model_and_one_protocol(space_of, text, message):
    with pytest.raises(PerPEFTError, match=message):
        check_search(space_of(text), {"model": "BPR", "dataset": "aspects"})
