"""Epochs are evaluated on some users, always the same; the best one on all."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.evaluation import evaluation_loader
from recbole_perpeft.data.history import rows_of_sample
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, get_trainer, load, resume, run


@given(users=st.lists(st.integers(1, 30), max_size=60), n=st.integers(0, 35), seed=st.integers(0, 9))
@settings(max_examples=50)
def test_all_rows_of_so_many_users(users, n, seed):
    users = np.array(users, dtype=np.int64)
    rows = rows_of_sample(users, n, seed)
    chosen = set(users[rows].tolist())
    assert len(chosen) == min(n or 99, len(set(users.tolist())))
    assert rows.tolist() == [row for row, user in enumerate(users.tolist()) if user in chosen]
    shuffled = np.random.default_rng(0).permutation(users)
    assert set(shuffled[rows_of_sample(shuffled, n, seed)].tolist()) == chosen  # whatever the rows of a model are


@pytest.mark.parametrize("mode", ["full", "uni20"])
def test_models_of_every_kind_have_the_same_users(toy_settings, mode):
    found = {}
    for model in ("BPR", "SASRec", "Pop"):
        config = Config(model, config_dict=toy_settings | {"eval_args": {"mode": mode}})
        built = create_dataset(config).build()
        whole, part = (evaluation_loader(config, built, "valid", n) for n in (0, 7))
        assert len(users_of(whole)) == 40 and len(part) <= len(whole)
        found[model] = users_of(part)
        assert len(found[model]) == 7
    assert found["BPR"] == found["SASRec"] == found["Pop"]


def users_of(loader):
    return set(np.concatenate([batch[0]["user_id"].numpy() for batch in loader]).tolist())


def test_rows_with_labels_are_not_drawn(toy_settings):
    config = Config("BPR", config_dict=toy_settings | {"eval_args": {"mode": "labeled"}})
    with pytest.raises(PerPEFTError, match="eval_sample is 7: mode labeled measures rows with labels"):
        evaluation_loader(config, [None, None, None], "valid", 7)


def test_the_best_epoch_is_measured_on_all_users(toy_settings):
    sampled = run("SASRec", config_dict=toy_settings | {"eval_sample": 9, "epochs": 4, "learning_rate": 0.01})
    config, model, _, train, valid, test = load(sampled["run_folder"])
    config["checkpoint_dir"] = f"{sampled['run_folder']}/again"
    trainer = get_trainer(config)(config, model)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(valid, load_best_model=False) == sampled["best_valid_result"]
    assert trainer.evaluate(test, load_best_model=False) == sampled["test_result"]
    assert sampled["best_valid_score"] == sampled["best_valid_result"]["ndcg@10"]
    epochs = pd.read_csv(f"{sampled['run_folder']}/metrics.csv")
    assert (epochs["hit@10"] * 9).round(3).mod(1).eq(0).all()  # of nine users
    again = resume(sampled["run_folder"], {"epochs": 4})
    assert again["best_valid_result"] == sampled["best_valid_result"]
    assert "epochs are evaluated on 9 users (9 of 40 rows)" in Path(f"{sampled['run_folder']}/run.log").read_text()
    assert json.loads(Path(f"{sampled['run_folder']}/result.json").read_text())["test_result"] == again["test_result"]


def test_more_users_than_there_are_change_nothing(toy_settings):
    expected, found = (run("BPR", config_dict=toy_settings | {"eval_sample": n, "epochs": 1}) for n in (0, 40))
    assert found["best_valid_result"] == expected["best_valid_result"]
    assert "epochs are evaluated on" not in Path(f"{found['run_folder']}/run.log").read_text()


def test_groups_without_a_user_of_the_sample_are_not_encoded(prepare, monkeypatch):
    prepared = prepare()
    model = prepared.personalise(3).eval()
    parts = [loader._dataset for loader in (prepared.train_data, prepared.valid_data, prepared.test_data)]
    sample = evaluation_loader(prepared.config, parts, "valid", 1)
    groups = []
    monkeypatch.setattr(
        ItemEncoder, "encode_catalogue", lambda self, group: groups.append(group) or torch.zeros(81, 32)
    )
    prepared.config["checkpoint_dir"] = prepared.config["runs_folder"]
    get_trainer(prepared.config)(prepared.config, model).evaluate(sample, load_best_model=False)
    (user,) = users_of(sample)
    assert groups == [int(model.user_group[user])]


def test_independent_groups_need_all_their_users(aspects_settings):
    settings = aspects_settings | {"eval_sample": 20, "shared_in_groups": "freeze"}
    with pytest.raises(PerPEFTError, match="freeze chooses an epoch for each group by all"):
        run(config_dict=settings)
