import logging

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft import trainer
from recbole_perpeft.models.perpeft.trainer import PerPEFTTrainer
from recbole_perpeft.runs.run import get_trainer, load, resume, run

DRAWN = {"regroup_every": 1, "regroup_temperature": 1.0, "regroup_annealing": 2}


class KilledError(Exception):
    pass


def kill_after(monkeypatch, epoch):
    """Ends a run as if it was killed, right after the checkpoint of an epoch was written."""
    finish = PerPEFTTrainer._finish_epoch

    def finish_and_die(self, row, train_data):
        finish(self, row, train_data)
        if row["epoch"] == epoch:
            raise KilledError

    monkeypatch.setattr(PerPEFTTrainer, "_finish_epoch", finish_and_die)


def epochs_of(result):
    columns = ["train_seconds", "valid_seconds"]
    return pd.read_csv(f"{result['run_folder']}/metrics.csv").drop(columns=columns)


@pytest.mark.parametrize(
    ("model", "stages"), [("PerPEFT", ["global"] * 2 + ["personalised"] * 2), ("GlobalPEFT", ["global"] * 2)]
)
def test_stages_and_what_is_kept(model, stages, aspects_settings):
    result = run(model=model, config_dict=aspects_settings)
    assert epochs_of(result)["stage"].tolist() == stages
    config, loaded, *_, test_data = load(result["run_folder"])
    assert loaded.n_groups == (3 if model == "PerPEFT" else 0)
    config["checkpoint_dir"] = result["run_folder"]
    trainer = loaded.trainer_class(config, loaded)
    assert trainer.evaluate(test_data, load_best_model=False) == pytest.approx(result["test_result"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs that nobody kills, one for each way, which all kills are compared with."""
    folder, runs = tmp_path_factory.mktemp("undisturbed"), {}

    def result(how, settings):
        if str(how) not in runs:
            runs[str(how)] = run(model="PerPEFT", config_dict=settings | {"runs_folder": str(folder)})
        return runs[str(how)]

    return result


@pytest.mark.parametrize(
    ("how", "killed_in_epoch"),
    [
        *(({}, epoch) for epoch in range(5)),
        *(({"regroup_every": 1}, epoch) for epoch in range(5)),
        *((DRAWN | {"group_mixing": 0.5}, epoch) for epoch in (2, 3)),
        *(({"shared_in_groups": "freeze"}, epoch) for epoch in (1, 2, 4)),
        *(({"group_learning_rate": 1e-4}, epoch) for epoch in (1, 2)),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_numbers(aspects_settings, monkeypatch, undisturbed, how, killed_in_epoch):
    settings = aspects_settings | {"epochs": 3, "run_folder": None} | how
    expected = undisturbed(how, settings)
    folder = f"{aspects_settings['runs_folder']}/killed"
    with monkeypatch.context() as patch:
        kill_after(patch, killed_in_epoch)
        with pytest.raises(KilledError):
            run(model="PerPEFT", config_dict=settings | {"run_folder": folder})
    resumed = resume(folder)
    pd.testing.assert_frame_equal(epochs_of(resumed), epochs_of(expected))
    assert resumed["test_result"] == expected["test_result"]
    assert resumed.get("regroupings") == expected.get("regroupings")
    ours, theirs = (torch.load(f"{r['run_folder']}/best.pth", weights_only=True) for r in (resumed, expected))
    for name, tensor in theirs["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(ours["state_dict"][name], tensor), name


def test_checkpoints_are_small(aspects_settings):
    result = run(model="PerPEFT", config_dict=aspects_settings)
    state = torch.load(f"{result['run_folder']}/best.pth", weights_only=True)["state_dict"]
    assert not [name for name in state if "vision_model" in name and "modules_of_groups" not in name]
    assert sum(t.numel() for t in state.values() if isinstance(t, torch.Tensor)) < 2 * result["trainable_parameters"]


def test_global_stage_equals_global_peft(aspects_settings):
    perpeft = epochs_of(run(model="PerPEFT", config_dict=aspects_settings))
    baseline = epochs_of(run(model="GlobalPEFT", config_dict=aspects_settings))
    pd.testing.assert_frame_equal(perpeft.iloc[:2], baseline)


@pytest.mark.parametrize("more", [{}, {"shared_in_groups": "freeze"}, {"param_groups": "official"}], ids=str)
def test_the_rate_of_groups_takes_the_place_of_the_rate_in_their_stage(aspects_settings, more):
    first = run(model="GlobalPEFT", config_dict=aspects_settings | more)
    settings = aspects_settings | more | {"global_run": first["run_folder"]}
    by_key = run(model="PerPEFT", config_dict=settings | {"group_learning_rate": 1e-4})
    alone = run(model="PerPEFT", config_dict=settings | {"learning_rate": 1e-4})
    unchanged = run(model="PerPEFT", config_dict=settings)
    pd.testing.assert_frame_equal(epochs_of(by_key), epochs_of(alone))
    assert not epochs_of(by_key)["train_loss"].equals(epochs_of(unchanged)["train_loss"])


def test_the_rate_of_groups_leaves_the_global_stage_as_it_is(aspects_settings):
    ours, usual = (
        epochs_of(run(model="PerPEFT", config_dict=aspects_settings | more))
        for more in ({"group_learning_rate": 1e-4}, {})
    )
    is_global = usual["stage"] == "global"
    pd.testing.assert_frame_equal(ours[is_global], usual[is_global])
    assert (ours["train_loss"] != usual["train_loss"])[~is_global].all()


def test_given_groups_and_random_groups(aspects_settings, small_aspects):
    settings = aspects_settings | {"grouping": "user_field", "group_field": "hidden_group", "min_group_size": 1}
    settings["load_col"] = {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "hidden_group"]}
    _, model, dataset, *_ = load(run(model="PerPEFT", config_dict=settings)["run_folder"])
    truth = pd.read_csv(small_aspects / "aspects" / "aspects.user", sep="\t", index_col=0).iloc[:, 0]
    tokens = dataset.field2id_token["user_id"][1:]
    table = pd.crosstab(truth[tokens].to_numpy(), model.user_group[1:].numpy())
    assert ((table > 0).sum(0) == 1).all() and ((table > 0).sum(1) == 1).all()

    _, model, *_ = load(run(model="PerPEFT", config_dict=aspects_settings | {"grouping": "random"})["run_folder"])
    assert np.bincount(model.user_group[1:]).tolist() == [50, 50, 50]


def test_given_groups_may_be_of_any_size_unless_users_move(aspects_settings):
    settings = aspects_settings | {"grouping": "user_field", "group_field": "hidden_group", "epochs": 1}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "hidden_group"]}}
    settings |= {"n_groups": 50, "min_group_size": 100}
    assert run(model="PerPEFT", config_dict=settings)["epochs"] == 3
    with pytest.raises(PerPEFTError, match="makes 4 groups, and regroup_every keeps 100 users or more in each"):
        run(model="PerPEFT", config_dict=settings | {"regroup_every": 1})


def test_validation_items_enter_the_grouping_only_on_request(aspects_settings, monkeypatch):
    seen = {}
    vectors = PerPEFTTrainer._global_user_vectors

    def spy(self, train_data, valid_data=None):
        result = vectors(self, train_data, valid_data)
        seen.setdefault(self.group_settings.grouping_history, result)
        return result

    monkeypatch.setattr(PerPEFTTrainer, "_global_user_vectors", spy)
    for history in ("train", "train_valid"):
        run(model="PerPEFT", config_dict=aspects_settings | {"grouping_history": history, "epochs": 1})
    assert not torch.allclose(seen["train"], seen["train_valid"], atol=1e-3)


def test_regrouping_moves_users_and_says_so(aspects_settings, caplog):
    caplog.set_level(logging.INFO)
    result = run(model="PerPEFT", config_dict=aspects_settings | {"regroup_every": 1, "learning_rate": 0.01})
    assert "regrouped:" in caplog.text
    assert [move["epoch"] for move in result["regroupings"]] == [2, 3]
    first, second = result["regroupings"]
    assert first["rand_index"] == first["rand_index_first"] <= 1 and (first["rand_index"] < 1) == bool(first["moved"])
    assert second["rand_index_first"] <= 1


def test_while_groups_are_drawn_nothing_is_waited_for(aspects_settings, monkeypatch):
    """Without a better epoch, training ends when two are waited for after the last drawn groups."""
    worse = lambda self, *_, **__: (-self.start_epoch, {"ndcg@20": -self.start_epoch})  # noqa: E731
    monkeypatch.setattr(PerPEFTTrainer, "_valid_epoch", worse)
    drawn = {"regroup_every": 1, "regroup_temperature": 1.0, "regroup_annealing": 4}
    for settings, epochs in ({"regroup_every": 1}, 5), (drawn, 8):
        settings = aspects_settings | {"epochs": 9, "stopping_step": 1, "epochs_global": 2} | settings
        result = run(model="PerPEFT", config_dict=settings)
        assert len(epochs_of(result)) == epochs
    assert [move["temperature"] for move in result["regroupings"]] == [1, 0.75, 0.5, 0.25, 0, 0]
    moved = [move["moved"] for move in result["regroupings"]]
    assert min(moved[:2]) > 60  # of 150 users, as modules that hardly differ say nothing yet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regroup_annealing": 2, "epochs": 2}, "epochs is 2, and users would still be drawn .* after epoch 2"),
        ({"regroup_every": 2, "regroup_annealing": 4, "epochs": 5}, "drawn into groups at the last .*, after epoch 4"),
        ({"regroup_every": 4, "epochs": 3}, "regroup_every is 4, but epochs is 3, so that users would never move"),
        ({"regroup_every": 0}, "regroup_temperature is 1, but without regroup_every nobody asks .* set regroup_every"),
    ],
    ids=str,
)
def test_users_must_come_to_rest(aspects_settings, settings, message):
    with pytest.raises(PerPEFTError, match=message):
        run(model="PerPEFT", config_dict=aspects_settings | DRAWN | settings)


def test_a_user_of_several_rows_has_one_group_one_vector_and_one_likelihood(aspects_settings, monkeypatch):
    """Histories of up to seven train items in rows of two targets."""
    settings = {"MAX_ITEM_LIST_LENGTH": 3, "train_overlap": 0.4, "regroup_every": 1, "epochs": 1, "min_group_size": 1}
    likelihoods, seen = {}, []

    def likelihood(model, rows, group, candidates):
        likelihoods[group] = torch.randn(len(rows), generator=torch.Generator().manual_seed(group))
        seen[:] = [rows["user_id"]]
        return likelihoods[group]

    monkeypatch.setattr(trainer, "sequence_log_likelihood", likelihood)
    result = run(model="PerPEFT", config_dict=aspects_settings | settings)
    assert result["train_targets"] == result["train_interactions"] - 150
    _, model, _, train_data, *_ = load(result["run_folder"])
    users, loader = seen[0], iter(train_data)
    assert len(users) == len(train_data.dataset) > 200 and "neg_item_id_list" in next(loader)
    best = [
        max(range(3), key=lambda group, rows=users == user: likelihoods[group][rows].double().sum().item())
        for user in range(1, 151)
    ]
    assert model.user_group.tolist() == [-1, *best]


@pytest.mark.parametrize(("n_groups", "least"), [(151, 1), (20, 10)])
def test_more_groups_than_users_is_refused_before_training(aspects_settings, n_groups, least):
    settings = aspects_settings | {"n_groups": n_groups, "min_group_size": least}
    with pytest.raises(PerPEFTError, match="150"):
        run(model="PerPEFT", config_dict=settings)


def test_a_model_of_content_learns(aspects_settings):
    """The loss falls, and ranking is far above chance (10 of 80 items, a quarter of the catalogue seen)."""
    settings = {"epochs_global": 8, "epochs": 8, "learning_rate": 3e-3, "train_batch_size": 16}
    result = run(model="PerPEFT", config_dict=aspects_settings | settings)
    losses = pd.read_csv(f"{result['run_folder']}/metrics.csv")["train_loss"]
    assert losses.iloc[7] < 0.9 * losses.iloc[0]
    assert result["test_result"]["hit@10"] > 1.5 * 10 / 80


def test_gradient_checkpointing_changes_no_number(aspects_settings):
    settings = aspects_settings | {"epochs_global": 1, "epochs": 1, "peft_config": {"lora_dropout": 0.1}}
    plain = epochs_of(run(model="PerPEFT", config_dict=settings))
    checkpointed = epochs_of(run(model="PerPEFT", config_dict=settings | {"gradient_checkpointing": True}))
    pd.testing.assert_frame_equal(checkpointed, plain, rtol=1e-5)


def test_bfloat16_trains_close_to_float32(aspects_settings):
    settings = aspects_settings | {"epochs_global": 1, "epochs": 1}
    exact = epochs_of(run(model="PerPEFT", config_dict=settings))["train_loss"]
    rounded = epochs_of(run(model="PerPEFT", config_dict=settings | {"enable_amp": True}))["train_loss"]
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded[0], exact[0], rtol=0.02)  # later epochs depend on the groups


@pytest.mark.parametrize("more", [{}, {"regroup_every": 1}])
def test_the_score_of_an_epoch_is_that_of_its_checkpoint_for_users_without_a_group_too(aspects_settings, more):
    split = {"split": {"RS": [0.5, 0.3, 0.2]}, "order": "TO", "group_by": "none", "mode": "full"}
    settings = aspects_settings | {"peft_type": "none", "epochs": 3, "learning_rate": 3e-3, "eval_args": split} | more
    ours = run("PerPEFT", config_dict=settings)
    config, model, _, train, valid, _ = load(ours["run_folder"])
    trainer = get_trainer(config)(config, model)
    trainer.eval_collector.data_collect(train)
    users = valid._dataset.inter_feat["user_id"]
    assert (model.user_group[users] < 0).any()
    assert trainer.evaluate(valid, load_best_model=False) == ours["best_valid_result"]
