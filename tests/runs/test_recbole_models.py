"""RecBole's own models train, save, reload the best checkpoint and evaluate on ml-100k through our command line."""

import json
from pathlib import Path

import pandas as pd
import pytest
from recbole.utils import init_seed

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.run import get_trainer, load, run

# Users with few ratings only: 7,600 of 100,000 ratings, so that a model trains within seconds.
FLAGS = ["--dataset=ml-100k", "--user_inter_num_interval=[20,40]", "--epochs=2", "--show_progress=False"]
GENERAL = ["Pop", "BPR", "LightGCN", "ItemKNN", "MultiVAE"]
SEQUENTIAL = ["SASRec", "GRU4Rec", "BERT4Rec", "Caser", "SASRecF", "FPMC"]


@pytest.fixture
def run_line(tmp_path, capsys):
    def run_line(model, *words):
        assert main([f"--model={model}", *FLAGS, *words, f"--runs_folder={tmp_path / 'runs'}"]) == 0
        folder = Path(capsys.readouterr().out.split("run folder: ")[1].strip())
        return folder, json.loads((folder / "result.json").read_text())

    return run_line


@pytest.mark.parametrize("model", GENERAL + SEQUENTIAL)
def test_train_save_reload_evaluate(run_line, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    folder, result = run_line(model)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}, "nothing outside the run folder"
    config, loaded, _, train, _, test = load(folder)
    config["checkpoint_dir"] = str(tmp_path / "again")
    trainer = get_trainer(config)(config, loaded)
    trainer.eval_collector.data_collect(train)
    init_seed(config["seed"], True)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]
    assert 0 < result["test_result"]["hit@30"] < 1


def test_all_models_rank_the_same_users_and_targets(run_line):
    ranks = [pd.read_parquet(run_line(model)[0] / "test_ranks.parquet") for model in ("Pop", "SASRec")]
    first, second = (table.set_index("user_id")["item_id"].sort_index() for table in ranks)
    pd.testing.assert_series_equal(first, second)


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_the_history_leaves_the_candidates_if_asked(run_line, model):
    with_history = run_line(model, "--mask_history=none")[1]["test_result"]
    without = run_line(model, "--mask_history=all")[1]["test_result"]
    assert without["hit@30"] != with_history["hit@30"]


def test_click_models_are_evaluated_on_labels(run_line):
    _, result = run_line("DeepFM")
    assert result["test_result"].keys() == {"auc", "logloss"}


def test_users_of_one_interaction_alone_leave_nothing_to_train_on(toy_settings, toy_path):
    lines = "".join(f"u{user}\ti{user % 5}\t1\n" for user in range(30))
    (toy_path / "toy" / "toy.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{lines}")
    with pytest.raises(
        PerPEFTError, match="toy: the train part of eval_args has no row for SASRec, .* choose another"
    ):
        run("SASRec", config_dict=toy_settings)
