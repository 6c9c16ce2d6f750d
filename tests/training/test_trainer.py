import csv
import math
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.trainer import KGTrainer, NCLTrainer, TraditionalTrainer, Trainer, XGBoostTrainer
from recbole.utils import init_seed
from scipy import sparse
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer
from recbole_perpeft.training import checkpoint
from recbole_perpeft.training.checkpoint import (
    load_checkpoint,
    loader_state,
    random_state,
    save_checkpoint,
    set_loader_state,
    set_random_state,
)
from recbole_perpeft.training.trainer import RunTrainer, run_trainer


@pytest.fixture
def build(toy_settings, tmp_path):
    """Makes a trainer with its model and loaders, as a run does."""

    def make(model="BPR", folder="run", **settings):
        config = Config(model, config_dict=toy_settings | settings)
        config["checkpoint_dir"] = str(tmp_path / folder)
        init_seed(config["seed"], True)
        loaders = data_preparation(config, create_dataset(config))
        model = config.model_class(config, loaders[0]._dataset)
        return get_trainer(config)(config, model), loaders

    return make


def _same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_checkpoints_hold_plain_types_and_are_read_without_pickle(build):
    trainer, (train, valid, _) = build()
    trainer.fit(train, valid)
    for name in ("best.pth", "last.pth"):
        content = torch.load(trainer.folder / name, weights_only=True)
        assert content["model"] == "BPR" and content["config"]["epochs"] == 3


@pytest.mark.parametrize("model", ["BPR", "SASRec", "BERT4Rec", "LightGCN"])
def test_a_resumed_training_ends_with_the_same_numbers(build, model):
    whole, (train, valid, test) = build(model, "whole", epochs=4)
    whole.fit(train, valid, verbose=False)
    first, (train_1, valid_1, _) = build(model, "cut", epochs=2)
    first.fit(train_1, valid_1, verbose=False)
    second, (train_2, valid_2, test_2) = build(model, "cut", epochs=4, seed=2026)
    np.random.seed(1)
    torch.manual_seed(1)
    second.resume_checkpoint(second.last_file, train_2)
    second.fit(train_2, valid_2, verbose=False)
    _same(whole.model.state_dict(), second.model.state_dict())
    assert [row["train_loss"] for row in whole.history] == [row["train_loss"] for row in second.history]
    assert whole.best_valid_result == second.best_valid_result
    assert whole.evaluate(test) == second.evaluate(test_2)


def test_resuming_a_finished_or_stopped_training_changes_nothing(build):
    trainer, (train, valid, _) = build(epochs=6, stopping_step=0, learning_rate=0.0)
    trainer.best_valid_score = 2.0
    trainer.fit(train, valid, verbose=False)
    assert len(trainer.history) == 1, "stopped at once"
    again, (train, valid, _) = build(epochs=6, stopping_step=0, learning_rate=0.0)
    again.resume_checkpoint(again.last_file, train)
    again.fit(train, valid, verbose=False)
    assert again.history == trainer.history


def test_the_best_epoch_is_evaluated_not_the_last(build):
    trainer, (train, valid, _) = build(epochs=3)
    scores = iter([0.5, 0.9, 0.1])
    kept = []

    def valid_epoch(data, show_progress=False):
        kept.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return (score := next(scores)), {"ndcg@10": score}

    trainer._valid_epoch = valid_epoch
    assert trainer.fit(train, valid, verbose=False) == (0.9, {"ndcg@10": 0.9})
    trainer.evaluate(valid)
    _same(trainer.model.state_dict(), kept[1])
    assert load_checkpoint(trainer.folder / "best.pth")["epoch"] == 1


def test_without_files_the_best_model_is_kept_in_memory(build):
    with_files, (train, valid, test) = build(folder="a")
    with_files.fit(train, valid, verbose=False)
    without, (train, valid, _) = build(folder="b")
    without.keeps_files = False
    without.fit(train, valid, verbose=False)
    assert not list(without.folder.glob("*.pth"))
    assert with_files.evaluate(test) == without.evaluate(test)


def test_an_epoch_is_trained_while_the_checkpoints_of_the_one_before_are_written(build, monkeypatch):
    trainer, (train, valid, _) = build(epochs=3)
    goes_on, train_epoch = threading.Event(), trainer._train_epoch

    def save(path, content):
        assert goes_on.wait(60), "the next epoch waits for the checkpoint"
        save_checkpoint(path, content)

    def count(data, epoch, **arguments):
        if epoch == 1:
            goes_on.set()
        return train_epoch(data, epoch, **arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    monkeypatch.setattr(trainer, "_train_epoch", count)
    trainer.fit(train, valid, verbose=False)
    assert load_checkpoint(trainer.last_file)["epoch"] == 2, "the last one is written when the training ends"


def test_a_record_is_never_ahead_of_its_checkpoint_and_no_checkpoint_ahead_of_the_best(build, monkeypatch):
    trainer, (train, valid, _) = build(epochs=3)
    written = []

    def save(path, content):
        if len(written) == 3:
            raise PerPEFTError("the disk is full")
        written.append((path.name, content["epoch"], (trainer.folder / "metrics.csv").exists()))
        save_checkpoint(path, content)

    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *_, **__: ((score := next(scores)), {"ndcg@10": score}))
    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    with pytest.raises(PerPEFTError, match="the disk is full"):
        trainer.fit(train, valid, verbose=False)
    assert written == [("best.pth", 0, False), ("last.pth", 0, False), ("best.pth", 1, True)]
    assert load_checkpoint(trainer.last_file)["epoch"] == 0
    with (trainer.folder / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0"]


def test_processes_that_load_batches_are_forked_from_a_program_of_one_thread(build):
    trainer, (train, valid, _) = build(epochs=2, worker=1)
    alive = []
    trainer._record_training = partial(_noting_threads, trainer._record_training, alive)
    trainer.fit(train, valid, verbose=False)
    assert alive == [[], []] and load_checkpoint(trainer.last_file)["epoch"] == 1


def _noting_threads(call, alive, *arguments):
    alive.append([thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoints")])
    return call(*arguments)


def test_whoever_is_called_after_an_epoch_finds_its_checkpoint(build):
    trainer, (train, valid, _) = build(epochs=3)
    found = []
    trainer.fit(train, valid, callback_fn=lambda *_: found.append(load_checkpoint(trainer.last_file)["epoch"]))
    assert found == [0, 1, 2]


def test_every_epoch_is_recorded(build):
    trainer, (train, valid, _) = build(eval_step=2, epochs=4)
    seen = []
    trainer.fit(train, valid, verbose=False, callback_fn=lambda epoch, score: seen.append((epoch, score)))
    with (trainer.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["ndcg@10"] != "" for row in rows] == [False, True, False, True]
    assert seen == [(epoch, float(rows[epoch]["ndcg@10"])) for epoch in (1, 3)]
    assert all(float(row["train_loss"]) > 0 and float(row["train_seconds"]) >= 0 for row in rows)


def test_nothing_is_written_to_the_working_directory(build, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    trainer, (train, valid, _) = build()
    trainer.fit(train, valid, verbose=False)
    trainer.close()
    assert not list(Path.cwd().iterdir())
    assert list((trainer.folder / "tensorboard").glob("events*"))


def test_a_loss_that_is_not_finite_ends_the_training(build):
    trainer, (train, valid, _) = build()
    trainer.model.calculate_loss = lambda batch: trainer.model.user_embedding.weight.sum() * math.nan
    with pytest.raises(PerPEFTError, match="training loss is .*nan.* in epoch 0"):
        trainer.fit(train, valid, verbose=False)


def test_gradients_are_clipped_at_their_true_size(build):
    trainer, (train, _, _) = build(clip_grad_norm={"max_norm": 0.1}, learner="sgd", learning_rate=1.0)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = torch.cat([tensor.flatten().clone() for tensor in trainer.model.parameters()])
    trainer._train_step([next(iter(train))], trainer.model.calculate_loss)
    after = torch.cat([tensor.flatten() for tensor in trainer.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_several_losses_are_summed_each(build):
    trainer, (train, _, _) = build()
    weight = trainer.model.user_embedding.weight
    trainer.model.calculate_loss = lambda batch: (weight.sum() * 0 + 1, weight.sum() * 0 + 2)
    assert trainer._train_epoch(train, 0) == pytest.approx((len(train), 2 * len(train)))


def test_what_recboles_trainers_override_stays_overridden():
    assert run_trainer(Trainer) is RunTrainer
    assert run_trainer(RunTrainer) is RunTrainer
    for recbole_trainer in (KGTrainer, TraditionalTrainer, NCLTrainer):
        own = run_trainer(recbole_trainer)
        assert own.__mro__.index(recbole_trainer) < own.__mro__.index(RunTrainer) < own.__mro__.index(Trainer)
    assert run_trainer(NCLTrainer)._train_epoch is NCLTrainer._train_epoch
    assert run_trainer(KGTrainer).fit is RunTrainer.fit
    with pytest.raises(PerPEFTError, match="XGBoostTrainer"):
        run_trainer(XGBoostTrainer)


def test_a_checkpoint_of_another_model_or_data_set_is_refused(build):
    trainer, (train, valid, _) = build("BPR")
    trainer.fit(train, valid, verbose=False)
    other, _ = build("LightGCN")
    with pytest.raises(PerPEFTError, match="checkpoint of BPR, not of LightGCN"):
        other.resume_checkpoint(trainer.last_file)
    larger, _ = build("BPR", embedding_size=32)
    with pytest.raises(PerPEFTError, match="does not fit the model"):
        larger.load_model(trainer.last_file)
    with pytest.raises(PerPEFTError, match="holds a model only"):
        build("BPR")[0].resume_checkpoint(trainer.folder / "best.pth")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not a checkpoint"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"model": "BPR", "state_dict": {"a": torch.zeros(100)}})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PerPEFTError, match="x.pth is damaged"):
        load_checkpoint(path)


def test_foreign_and_missing_files_are_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(PerPEFTError, match="not a checkpoint of recbole_perpeft"):
        load_checkpoint(tmp_path / "foreign.pth")
    with pytest.raises(PerPEFTError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "missing.pth")
    save_checkpoint(tmp_path / "new.pth", {"format_version": 99})
    with pytest.raises(PerPEFTError, match="newer"):
        load_checkpoint(tmp_path / "new.pth")


def test_arrays_and_sparse_matrices_survive_and_modules_are_left_out(tmp_path):
    content = {
        "array": np.arange(3.0),
        "number": np.float32(1.5),
        "matrix": sparse.csr_matrix(np.eye(3)),
        "nested": [(1, {"tensor": torch.ones(2)})],
        "module": nn.Linear(1, 1),
    }
    save_checkpoint(tmp_path / "x.pth", content)
    again = load_checkpoint(tmp_path / "x.pth")
    np.testing.assert_array_equal(again["array"], content["array"])
    np.testing.assert_array_equal(again["matrix"].toarray(), np.eye(3))
    assert again["number"] == 1.5 and again["nested"][0][1]["tensor"].tolist() == [1, 1]
    assert "module" not in again


def test_objects_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(PerPEFTError, match=r"checkpoint\['a'\]\['b'\] is a PosixPath"):
        save_checkpoint(tmp_path / "x.pth", {"a": {"b": Path("x")}})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"epoch": 1})

    def full(content, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(PerPEFTError, match="No space left"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_random_states_survive_a_file(tmp_path):
    import random

    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    np.random.randn()
    save_checkpoint(tmp_path / "x.pth", {"random": random_state()})
    drawn = draw()
    set_random_state(load_checkpoint(tmp_path / "x.pth")["random"])
    assert draw() == drawn


def test_the_order_of_recboles_loader_survives(build):
    _, (train, _, _) = build()
    state = loader_state(train)
    first = next(iter(train))["user_id"].tolist()
    assert next(iter(train))["user_id"].tolist() != first
    set_loader_state(train, state)
    assert next(iter(train))["user_id"].tolist() == first
