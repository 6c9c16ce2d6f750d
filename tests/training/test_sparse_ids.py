"""Tables of which a step reaches a few rows: the same as dense ones where it can be, and nothing else moves."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training.gradients import MeanGradient
from recbole_perpeft.training.optimisers import clip_norm
from recbole_perpeft.training.workers import ALONE

IDS = {"peft_type": "ids", "weight_decay": 0.0, "id_embedding_reg": 0.0, "epochs": 1}
SPARSE = IDS | {"sparse_ids": True}


@pytest.fixture
def pair(prepare, tmp_path):
    """The same model with a dense and with a sparse table, and a trainer of each."""

    def make(**chosen):
        both = [prepare("GlobalPEFT", **IDS | chosen | {"sparse_ids": sparse}) for sparse in (False, True)]
        both[1].model.load_state_dict(both[0].model.state_dict())
        return [(one, one.trainer(tmp_path)) for one in both]

    return make


def table_of(prepared):
    return prepared.model.item_encoder.id_embedding.weight


@pytest.mark.parametrize("loss", ["bce", "gbce", "sampled_softmax", "in_batch"])
def test_a_step_of_adam_moves_the_rows_of_its_batch_as_the_dense_one_does(pair, loss):
    (dense, plain), (sparse, rows) = pair(loss_type=loss, learner="adamw", clip_grad_norm={"max_norm": 5})
    before = table_of(sparse).clone()
    batch = next(iter(dense.train_data))
    for trainer in (plain, rows):
        trainer.model.eval()  # no dropout
        trainer._train_step([copy.deepcopy(batch)], trainer.model.calculate_loss)
    grad = table_of(dense).grad
    torch.testing.assert_close(table_of(sparse).grad.to_dense(), grad, rtol=1e-6, atol=0)
    large = grad.abs() > 1e-5  # below, eps counts, which SparseAdam adds at another place
    assert large.sum() > 500
    moved, expected = (table_of(one)[large] - before[large] for one in (sparse, dense))
    torch.testing.assert_close(moved, expected, rtol=0.04, atol=0)
    reached = grad.any(1)
    assert not reached.all() and torch.equal(table_of(sparse)[~reached], before[~reached])
    for (name, ours), theirs in zip(sparse.model.named_parameters(), dense.model.parameters(), strict=True):
        if "id_embedding" not in name:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("learner", ["sgd", "adagrad"])
def test_what_remembers_nothing_of_other_rows_trains_as_with_a_dense_table(pair, learner):
    found = []
    for prepared, trainer in pair(learner=learner, learning_rate=0.01, clip_grad_norm={"max_norm": 0.5}):
        torch.manual_seed(0)
        trainer.fit(prepared.train_data, prepared.valid_data, verbose=False)
        found.append((table_of(prepared).detach(), trainer.best_valid_result))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)


def test_weight_decay_leaves_the_table_alone_and_not_the_rest(prepare, tmp_path):
    prepared = prepare("GlobalPEFT", **SPARSE | {"weight_decay": 0.5, "learner": "adamw"})
    trainer = prepared.trainer(tmp_path)
    decay = {
        id(one): group["weight_decay"] for group in trainer.optimizer.parts[0].param_groups for one in group["params"]
    }
    assert set(decay.values()) == {0.5} and id(table_of(prepared)) not in decay
    assert len(decay) == len(list(prepared.model.parameters())) - 1
    assert trainer.optimizer.parts[1].param_groups[0]["params"] == [table_of(prepared)]


@pytest.mark.parametrize("learner", ["adamw", "adagrad"])
def test_a_training_that_goes_on_ends_as_one_that_was_not_interrupted(prepare, tmp_path, learner):
    def trained(folder, epochs):
        torch.manual_seed(7)
        prepared = prepare(
            "PerPEFT", **SPARSE | {"peft_type": "none", "learner": learner, "epochs": epochs, "epochs_global": 0}
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        trainer = prepared.trainer(tmp_path / folder)
        if trainer.last_file.is_file():
            trainer.resume_checkpoint(trainer.last_file, prepared.train_data)
        trainer.fit(prepared.train_data, prepared.valid_data, verbose=False)
        return trainer.best_valid_result, table_of(prepared).detach().clone()

    expected = trained("whole", 2)
    trained("interrupted", 1)
    found = trained("interrupted", 2)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (
            {"loss_type": "softmax", "peft_type": "none"},
            "sparse_ids: a loss over the whole catalogue .*sampled_softmax",
        ),
        ({"id_embedding_reg": 1e-6}, "sparse_ids: the norm of id_embedding_reg .*set id_embedding_reg to 0"),
        ({"learner": "rmsprop"}, "sparse_ids: learner rmsprop .*adam, adamw, sgd, adagrad"),
        ({"learner": "sparse_adam"}, "sparse_ids: learner sparse_adam .*adam, adamw"),
    ],
)
def test_what_reaches_all_rows_is_refused(prepare, chosen, sentence):
    with pytest.raises(PerPEFTError, match=sentence):
        prepare("GlobalPEFT", **SPARSE | chosen)


def test_items_without_ids_have_no_sparse_ones(prepare):
    with pytest.raises(PerPEFTError, match="sparse_ids: items of MoRec have no id vectors; set it to False"):
        prepare("MoRec", adaptation="frozen", sparse_ids=True)


class Table(nn.Module):
    """Sums of rows, times a weight."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(8, 3, padding_idx=0, sparse=sparse)
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, rows):
        return (self.rows(torch.tensor(rows)) * self.weight).sum()


BATCHES = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=40)
@given(BATCHES, st.floats(0.01, 10), st.sampled_from([1.0, 2.0, float("inf")]))
def test_means_and_norms_of_sparse_gradients_are_those_of_dense_ones(batches, max_norm, norm_type):
    found = []
    for sparse in (False, True):
        model = Table(sparse)
        mean = MeanGradient(model, model.parameters(), ALONE)
        for rows in batches:
            model(rows).backward()
            if len(batches) > 1:
                mean.take()
        if len(batches) > 1:
            mean.give(len(batches))
        clip_norm(model.parameters(), max_norm=max_norm, norm_type=norm_type)
        found.append([parameter.grad.to_dense() for parameter in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_processes_have_the_sum_of_the_rows_that_each_has_reached(in_processes):
    batches = [[1, 2, 2], [0, 5], [5, 6], [7]]

    def mean(workers):
        model = Table(sparse=True)
        gradient = MeanGradient(model, model.parameters(), workers)
        for rows in batches[workers.rank :: 3 * workers.size // 2]:  # the second of two processes has a single batch
            model(rows).backward()
            gradient.take()
        gradient.give(3)
        return [parameter.grad.to_dense() for parameter in model.parameters()]

    model = Table(sparse=False)
    (sum(model(rows) for rows in (batches[0], batches[3], batches[1])) / 3).backward()
    for found in in_processes(2, mean):
        torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])
