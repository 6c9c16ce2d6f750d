import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from recbole_perpeft.cli.main import main
from recbole_perpeft.cli.train import help_text
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models import list_models, list_recbole_models
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RunFolder
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.runs.run import create_dataset, load, resume, run

ROOT = Path(__file__).resolve().parents[2]
RUN_FILES = {
    "best.pth",
    "config.yaml",
    "environment.json",
    "ids.parquet",
    "last.pth",
    "metrics.csv",
    "result.json",
    "run.log",
    "tensorboard",
    "test_ranks.parquet",
}


@pytest.fixture
def flags(toy_settings):
    """The toy settings as words of a command line."""
    return [f"--{key}={value}" for key, value in toy_settings.items()]


def test_a_run_leaves_one_folder_with_everything(toy_settings, toy_path):
    result = run("BPR", config_dict=toy_settings)
    folders = list((toy_path / "runs").iterdir())
    assert folders == [Path(result["run_folder"])]
    assert {path.name for path in folders[0].iterdir()} == RUN_FILES
    assert folders[0].name.startswith("BPR-toy-") and folders[0].name.endswith("-seed2026")
    assert json.loads((folders[0] / "result.json").read_text()) == result
    environment = json.loads((folders[0] / "environment.json").read_text())
    assert environment["seed"] == 2026 and environment["packages"]["recbole"].startswith("1.2")
    log = (folders[0] / "run.log").read_text()
    assert "epoch 2 training" in log and "\x1b" not in log
    assert "protocol: split LS valid_and_test, order TO, group_by user, mode valid full test full, " in log
    assert result["trainable_parameters"] == result["parameters"] > 0
    assert result["seconds_per_epoch"].keys() == {"train"}


def test_the_ranks_of_the_run_give_its_metrics(toy_settings):
    result = run("SASRec", config_dict=toy_settings)
    ranks = pd.read_parquet(Path(result["run_folder"]) / "test_ranks.parquet")
    assert list(ranks.columns) == ["user_id", "item_id", "rank"]
    assert set(ranks["user_id"]) == {f"u{user}" for user in range(40)}
    assert (ranks["rank"] <= 5).mean() == pytest.approx(result["test_result"]["hit@5"], abs=1e-6)
    last = pd.read_csv(Path(toy_settings["data_path"]) / "toy" / "toy.inter", sep="\t").groupby("user_id:token").last()
    assert dict(zip(ranks["user_id"], ranks["item_id"], strict=True)) == last["item_id:token"].to_dict()


def test_the_settings_of_a_run_repeat_it(toy_settings):
    first = run("SASRec", config_dict=toy_settings | {"learning_rate": 0.01})
    second = run(config_file_list=[str(Path(first["run_folder"]) / "config.yaml")])
    assert first["run_folder"] != second["run_folder"]
    assert first["test_result"] == second["test_result"]


@pytest.mark.parametrize("model", ["BPR", "SASRec", "Pop"])
def test_a_loaded_model_evaluates_as_the_run_did(toy_settings, model):
    result = run(model, config_dict=toy_settings)
    config, loaded, dataset, train, valid, test = load(result["run_folder"])
    from recbole_perpeft.runs.run import get_trainer

    config["checkpoint_dir"] = str(Path(result["run_folder"]) / "again")
    trainer = get_trainer(config)(config, loaded)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]
    assert trainer.evaluate(valid, load_best_model=False) == result["best_valid_result"]


def test_without_saving_no_checkpoint_is_left(toy_settings):
    saved, unsaved = (run("BPR", config_dict=toy_settings, saved=flag) for flag in (True, False))
    assert not list(Path(unsaved["run_folder"]).glob("*.pth"))
    assert saved["test_result"] == unsaved["test_result"]


def test_resume_extends_a_finished_run_in_its_folder(toy_settings):
    whole = run("SASRec", config_dict=toy_settings | {"epochs": 4})
    short = run("SASRec", config_dict=toy_settings | {"epochs": 2})
    longer = resume(short["run_folder"], {"epochs": 4})
    assert longer["run_folder"] == short["run_folder"] and longer["epochs"] == 4
    assert longer["test_result"] == whole["test_result"]
    assert longer["best_valid_result"] == whole["best_valid_result"]


def test_a_run_that_was_killed_before_its_first_epoch_starts_again(toy_settings):
    whole = run("BPR", config_dict=toy_settings)
    config = Config("BPR", config_dict=toy_settings)
    folder = RunFolder.create(config)
    folder.write_settings(config)
    assert resume(folder.path)["test_result"] == whole["test_result"]


@pytest.mark.parametrize(
    "change",
    [
        *({"embedding_size": 32}, {"data_path": "/nowhere"}, {"seed": 7}, {"valid_metric": "Hit@5"}),
        *(
            {"eval_args": {"mode": "uni10"}},
            {"mask_history": "none"},
            {"eval_sample": 5},
            {"run_folder": "/elsewhere"},
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_leave_a_run_as_it_was(toy_settings, change):
    folder = Path(run("BPR", config_dict=toy_settings)["run_folder"])
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "result.json", "environment.json")}
    with pytest.raises(PerPEFTError):
        resume(folder, change)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert resume(folder, {"epochs": 4})["epochs"] == 4


def test_all_settings_of_a_run_may_be_given_again(toy_settings, caplog):
    shares = {"split": {"RS": (0.8, 0.1, 0.1)}, "order": "TO", "group_by": "user", "target": None}
    settings = toy_settings | {"eval_args": shares, "checkpoint_dir": "elsewhere"}
    folder = run("BPR", config_dict=settings)["run_folder"]
    assert "checkpoint_dir is not read" in caplog.text
    assert resume(folder, settings | {"epochs": 4})["epochs"] == 4


def test_a_run_that_goes_on_is_not_finished(toy_settings):
    folder, seen = Path(run("BPR", config_dict=toy_settings)["run_folder"]), []
    resume(folder, {"epochs": 5}, callback_fn=lambda *_: seen.append((folder / "result.json").exists()))
    assert seen == [False, False] and (folder / "result.json").exists()
    resume(folder, {"epochs": 6}, with_test=False)
    assert not (folder / "test_ranks.parquet").exists() and RunRecord(folder).damage() is None


def test_numbers_of_numpy_are_numbers(toy_settings):
    numbers = {"embedding_size": np.int64(8), "learning_rate": np.float64(1e-3), "topk": [np.int64(5), 10]}
    folder = run("BPR", config_dict=toy_settings | numbers)["run_folder"]
    config, model, *_ = load(folder)
    assert (config["embedding_size"], config["topk"]) == (8, [5, 10]) and model.embedding_size == 8


def test_a_killed_run_resumes_to_the_same_numbers(toy_settings, toy_path):
    settings = toy_settings | {"epochs": 8}
    whole = run("SASRec", config_dict=settings)
    words = [f"--{key}={value}" for key, value in settings.items()]
    folder = toy_path / "killed"
    command = [sys.executable, str(ROOT / "run_recbole.py"), "--model=SASRec", f"--run_folder={folder}", *words]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "last.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists(), "killed before its end"
    assert resume(folder)["test_result"] == whole["test_result"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model": "BPR"}, "model SASRec, not BPR"), ({"dataset": "other"}, "dataset toy, not other")],
)
def test_a_run_of_another_model_or_data_set_is_not_resumed(toy_settings, change, message):
    result = run("SASRec", config_dict=toy_settings | {"epochs": 1})
    with pytest.raises(PerPEFTError, match=message):
        resume(result["run_folder"], change)
    with pytest.raises(PerPEFTError, match="last.pth"):
        resume(Path(result["run_folder"]) / "best.pth")


def test_what_is_no_run_is_not_resumed(tmp_path):
    with pytest.raises(PerPEFTError, match="there is no"):
        resume(tmp_path / "missing")
    with pytest.raises(PerPEFTError, match="config.yaml"):
        resume(tmp_path)


def test_runs_of_the_same_second_get_folders_of_their_own(toy_settings):
    config = Config("BPR", config_dict=toy_settings)
    assert len({RunFolder.create(config).path for _ in range(5)}) == 5


def test_a_named_run_folder_must_be_empty(toy_settings, tmp_path):
    config = Config("BPR", config_dict=toy_settings | {"run_folder": str(tmp_path / "mine")})
    assert RunFolder.create(config).path == tmp_path / "mine"
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(PerPEFTError, match="not empty"):
        RunFolder.create(config)


def test_a_run_leaves_the_logging_of_the_caller_alone(toy_settings):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    run("Pop", config_dict=toy_settings)
    assert (list(root.handlers), root.level) == (handlers, level)


def test_drawn_candidates_give_metrics(toy_settings):
    settings = toy_settings | {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni10"}}
    result = run("BPR", config_dict=settings)
    assert 0 < result["test_result"]["hit@10"] <= 1


def test_a_random_split_with_several_targets_has_no_ranks(toy_settings):
    settings = toy_settings | {"eval_args": {"split": {"RS": [0.5, 0.2, 0.3]}, "order": "RO", "mode": "full"}}
    result = run("BPR", config_dict=settings)
    assert not (Path(result["run_folder"]) / "test_ranks.parquet").exists()


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        (None, {"load_col": {"inter": ["user_id", "itemid"]}}, "no column itemid.*Did you mean item_id"),
        (None, {"load_col": {"inter": ["user_id"], "item": ["title"]}}, "toy.item is missing"),
        ("user_id\titem_id:token\ttimestamp:float", {}, "line 1: 'user_id' is not name:type"),
        ("user_id:token\titem_id:text\ttimestamp:float", {}, "line 1: 'item_id:text' is not name:type"),
        ("user_id:token\titem_id:token\titem_id:token", {}, "item_id is there twice"),
        ("user_id:token,item_id:token,timestamp:float", {}, "separated by"),
    ],
)
def test_broken_atomic_files_are_named(toy_settings, header, settings, message):
    path = Path(toy_settings["data_path"]) / "toy" / "toy.inter"
    if header:
        path.write_text("\n".join([header, *path.read_text().splitlines()[1:]]))
    with pytest.raises(PerPEFTError, match=message) as caught:
        create_dataset(Config("BPR", config_dict=toy_settings | settings))
    assert str(path.parent) in str(caught.value)


def test_a_row_that_is_no_number_is_an_error_with_its_line(toy_settings):
    path = Path(toy_settings["data_path"]) / "toy" / "toy.inter"
    path.write_text(path.read_text() + "u1\ti1\tyesterday\n")
    with pytest.raises(PerPEFTError, match=r"toy.inter, line \d+: 'yesterday' in the column timestamp is"):
        create_dataset(Config("BPR", config_dict=toy_settings))


def test_a_missing_data_set_says_where_it_was_looked_for(toy_settings):
    with pytest.raises(PerPEFTError, match="no data set shop.*it holds toy.*--data_path"):
        create_dataset(Config("BPR", config_dict=toy_settings | {"dataset": "shop"}))
    with pytest.raises(PerPEFTError, match="nowhere, which does not exist"):
        create_dataset(Config("BPR", config_dict=toy_settings | {"data_path": "nowhere"}))


def test_aspects_is_made_on_first_use(toy_settings, monkeypatch):
    made = []

    def make_aspects(folder, **options):
        made.append(folder)
        folder.mkdir()
        toy = Path(toy_settings["data_path"]) / "toy" / "toy.inter"
        (folder / "aspects.inter").write_bytes(toy.read_bytes())

    monkeypatch.setattr("recbole_perpeft.data.aspects.catalogue.make_aspects", make_aspects)
    for _ in range(2):
        create_dataset(Config("BPR", config_dict=toy_settings | {"dataset": "aspects"}))
    assert made == [Path(toy_settings["data_path"]) / "aspects"]


def test_the_command_line_ends_with_a_table_and_the_folder(flags, capsys, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("epochs: 1\nseed: 7\n")
    words = [word for word in flags if not word.startswith("--epochs")]
    assert main(["--model=Pop", f"--config_files={more} {more}", *words]) == 0
    printed = capsys.readouterr().out
    assert "ndcg@10" in printed and "run folder: " in printed
    folder = Path(printed.split("run folder: ")[1].strip())
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle=BPR"], "did you mean 'model'"),
        (["--model=BRP"], "did you mean BPR"),
        (["--dataset=nothing"], "no data set nothing"),
        (["--state=LOUD"], "state is 'LOUD': it must be"),
        (["--resume=nowhere"], "there is no nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(flags, capsys, words, message):
    keys = {word.split("=")[0] for word in words}
    defaults = [] if "--resume" in keys else ["--model=BPR", *flags]
    rest = [word for word in defaults if word.split("=")[0] not in keys]
    assert main([*rest, *words]) == 2
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in printed.err


def test_help_and_the_list_of_models(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--resume" in text and "mask_history" in text and "PerPEFT" in text
    assert main(["--list_models"]) == 0
    assert set(capsys.readouterr().out.split()) >= {*list_models(), *list_recbole_models()}


@pytest.mark.parametrize("name", list_models())
def test_help_for_a_model_has_its_settings(name):
    assert len(help_text(name)) > len(help_text())


@pytest.mark.parametrize("mode", ["full", "uni5"])
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_without_a_valid_part_the_last_model_is_tested(toy_settings, model, mode):
    split = {"eval_args": {"split": {"LS": "test_only"}, "mode": mode}}
    result = run(model, config_dict=toy_settings | split)
    assert result["epochs"] == 3 and result["best_valid_score"] is None and result["best_valid_result"] == {}
    assert result["test_result"]["hit@10"] > 0
    folder = Path(result["run_folder"])
    assert "there is no valid part" in (folder / "run.log").read_text()
    best, last = (load(folder / name)[1].state_dict() for name in ("best.pth", "last.pth"))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_without_a_test_part_nothing_is_tested(toy_settings):
    result = run("SASRec", config_dict=toy_settings | {"eval_args": {"split": {"LS": "valid_only"}}})
    assert result["best_valid_score"] > 0 and result["test_result"] == {}
    assert "there is no test part" in (Path(result["run_folder"]) / "run.log").read_text()
