"""Losses with many candidates, against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from recbole_perpeft.data.sampler import Candidates
from recbole_perpeft.nn.losses import NextItems, cross_entropy, gbce
from recbole_perpeft.nn.losses.bce import next_item_bce_loss
from recbole_perpeft.nn.losses.gbce import GBCELoss
from recbole_perpeft.nn.losses.sampled_softmax import SampledSoftmaxLoss
from recbole_perpeft.nn.losses.softmax import SoftmaxLoss

N_ITEMS, WIDTH = 9, 4
LOSSES = {
    "softmax": SoftmaxLoss(),
    "sampled_softmax": SampledSoftmaxLoss(3),
    "gbce": GBCELoss(3, 0.6),
    "gbce-one": GBCELoss(1, 0.0),
}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def make_batch(seed=0, scale=1.0, dtype=torch.float64, n_negatives=3):
    """Left-padded rows of three slots, some of which give context alone."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape):
        return (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()

    inputs = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 6], [7, 7, 8]])
    targets = torch.tensor([[0, 2, 3], [0, 5, 6], [0, 0, 2], [7, 8, 7]])
    negatives = torch.randint(1, N_ITEMS, (4, 3, n_negatives), generator=draw) * (targets != 0).unsqueeze(-1)
    items = torch.randperm(N_ITEMS - 1, generator=draw)[:4].sort().values + 1
    owned = torch.rand(4, 4, generator=draw) < 0.3
    candidates = Candidates(items, torch.randn(4, generator=draw), owned)
    hidden, vectors = random(4, 3, WIDTH), random(N_ITEMS, WIDTH)
    return NextItems(hidden, inputs, targets, torch.arange(N_ITEMS), vectors, None, N_ITEMS, negatives, candidates)


def in_loop(loss, batch):
    """The formulas, one position at a time."""
    terms = []
    for row, slot in batch.targets.nonzero().tolist():
        user, target = batch.hidden[row, slot].double(), int(batch.targets[row, slot])
        scores = batch.vectors.double() @ user
        if isinstance(loss, GBCELoss):
            alpha = loss.n_negatives / (N_ITEMS - 2)
            beta = alpha * (loss.gbce_t * (1 - 1 / alpha) + 1 / alpha)
            drawn = batch.negatives[row, slot].tolist()
            logs = [
                beta * functional.logsigmoid(scores[target]),
                *(functional.logsigmoid(-scores[item]) for item in drawn),
            ]
            terms.append(-sum(logs) / len(logs))
            continue
        others = {item: 0.0 for item in range(1, N_ITEMS)}
        if isinstance(loss, SampledSoftmaxLoss):
            candidates = zip(batch.candidates.items.tolist(), batch.candidates.log_weight, strict=True)
            mine = batch.candidates.items[batch.candidates.owned[row]].tolist()
            others = {item: weight.double() for item, weight in candidates if item not in mine}
        others.pop(target, None)
        logits = torch.stack([scores[target], *(scores[item] + weight for item, weight in others.items())])
        terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


def gradients(value, batch):
    return torch.autograd.grad(3.0 * value, (batch.hidden, batch.vectors))


@all_losses
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_loss_and_gradients_equal_a_loop(loss, seed, scale):
    batch = make_batch(seed, scale, n_negatives=loss.draws.negatives)
    value, expected = loss(batch), in_loop(loss, batch)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(gradients(value, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@all_losses
def test_gradients_equal_finite_differences(loss):
    batch = make_batch(n_negatives=loss.draws.negatives)

    def value(hidden, vectors):
        fields = vars(batch) | {"hidden": hidden, "vectors": vectors}
        return loss(NextItems(**fields))

    assert torch.autograd.gradcheck(value, (batch.hidden, batch.vectors))


@all_losses
def test_positions_are_computed_in_parts(loss, monkeypatch):
    whole = loss(make_batch(n_negatives=loss.draws.negatives))
    monkeypatch.setattr(cross_entropy, "_SCORES_AT_ONCE", 10)
    monkeypatch.setattr(cross_entropy, "_FEWEST_POSITIONS", 2)
    monkeypatch.setattr(gbce, "_NUMBERS_AT_ONCE", 2 * WIDTH * max(1, loss.draws.negatives))
    batch = make_batch(n_negatives=loss.draws.negatives)
    parts = loss(batch)
    torch.testing.assert_close(parts, whole)
    for ours, theirs in zip(gradients(parts, batch), gradients(in_loop(loss, batch), batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@all_losses
def test_half_precision_is_computed_in_float32_and_extreme_scores_stay_finite(loss):
    batch = make_batch(scale=200.0, dtype=torch.bfloat16, n_negatives=loss.draws.negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(batch)
    assert value.dtype == torch.float32 and value.isfinite()
    for gradient in gradients(value, batch):
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


def test_all_items_drawn_are_the_whole_softmax():
    batch = make_batch()
    nobody = torch.zeros(4, N_ITEMS - 1, dtype=torch.bool)
    everything = Candidates(torch.arange(1, N_ITEMS), torch.zeros(N_ITEMS - 1), nobody)
    sampled, whole = SampledSoftmaxLoss()(NextItems(**vars(batch) | {"candidates": everything})), SoftmaxLoss()(batch)
    torch.testing.assert_close(sampled, whole)
    for ours, theirs in zip(gradients(sampled, batch), gradients(whole, batch), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_position_without_a_candidate_learns_nothing():
    batch = make_batch()
    all_mine = Candidates(batch.candidates.items, batch.candidates.log_weight, torch.ones(4, 4, dtype=torch.bool))
    value = SampledSoftmaxLoss()(NextItems(**vars(batch) | {"candidates": all_mine}))
    assert value == 0 and not any(gradient.any() for gradient in gradients(value, batch))


def test_calibration_of_gbce():
    assert gbce.calibration(5, 101, 0.0) == 1.0
    assert gbce.calibration(5, 101, 1.0) == pytest.approx(0.05)
    assert gbce.calibration(200, 101, 0.5) == 1.0


def test_gbce_with_one_negative_and_without_calibration_is_half_of_bce():
    batch = make_batch(n_negatives=1)
    positive, negative = batch.vectors[batch.targets], batch.vectors[batch.negatives.squeeze(-1)]
    whole = next_item_bce_loss(batch.hidden, positive, negative, batch.targets != 0)
    assert GBCELoss(1, 0.0)(batch).item() == pytest.approx(whole.item() / 2, rel=1e-5)
