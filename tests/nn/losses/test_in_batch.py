import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.losses import cross_entropy
from recbole_perpeft.nn.losses.in_batch import InBatchLoss, in_batch_debiased_loss, log_popularity

N_ITEMS = 9  # the pad included
COUNTS = torch.tensor([0, 5, 1, 0, 12, 3, 0, 2, 7])
ROWS = {
    "pads": [[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]],
    "items repeated in a row": [[1, 2, 1, 3], [4, 4, 4, 5], [0, 6, 6, 6]],
    "items shared between rows": [[1, 2, 3, 4], [4, 3, 2, 5], [0, 1, 4, 8]],
    "target twice in its row": [[2, 1, 3, 1], [0, 5, 1, 5], [0, 0, 7, 8]],
    "one row": [[0, 1, 2, 3]],
    "one item": [[4, 4, 4, 4], [0, 0, 4, 4]],
}


def plain_loss(hidden, rows, vectors_of_slots, log_p):
    """Section 5 of the papers' description, slot by slot; every slot has a vector of its own."""
    terms = []
    width = rows.shape[1]
    for u, row in enumerate(rows.tolist()):
        for i in range(width - 1):
            if row[i] == 0:
                continue
            scores = []
            for v, other in enumerate(rows.tolist()):
                for j, item in enumerate(other):
                    is_target = (v, j) == (u, i + 1)
                    if is_target:
                        label = len(scores)
                    rejected = item == 0 or (item in row and not is_target)
                    score = (hidden[u, i] * vectors_of_slots[v, j]).sum() - log_p[item]
                    scores.append(torch.full_like(score, -1e4) if rejected else score)
            scores = torch.stack(scores)
            terms.append(torch.logsumexp(scores, 0) - scores[label])
    return torch.stack(terms).mean()


def inputs(rows, seed=0, width=5, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor(rows)
    items = rows.unique()
    hidden = scale * torch.randn(len(rows), rows.shape[1] - 1, width, generator=generator, dtype=torch.float64)
    vectors = scale * torch.randn(len(items), width, generator=generator, dtype=torch.float64)
    log_p = torch.from_numpy(np.log(np.maximum(COUNTS.numpy(), 1) / COUNTS.sum().item()))
    log_p[0] = 0.0
    return hidden.requires_grad_(), rows, items, vectors.requires_grad_(), log_p


def assert_equals_plain_loop(rows, seed=0, scale=1.0):
    """Loss and gradients, where the plain loop encodes every slot on its own."""
    hidden, rows, items, vectors, log_p = inputs(rows, seed, scale=scale)
    place = torch.searchsorted(items, rows)
    copies = vectors.detach()[place].requires_grad_()
    plain_hidden = hidden.detach().clone().requires_grad_()
    expected = plain_loss(plain_hidden, rows, copies, log_p)
    loss = in_batch_debiased_loss(hidden, rows, items, vectors, log_p)
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-9)
    (3.0 * expected).backward()
    (3.0 * loss).backward()
    torch.testing.assert_close(hidden.grad, plain_hidden.grad, atol=1e-9, rtol=1e-9)
    gathered = torch.zeros_like(vectors).index_add(0, place.flatten(), copies.grad.flatten(0, 1))
    torch.testing.assert_close(vectors.grad, gathered, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_loss_equals_a_plain_loop(rows):
    assert_equals_plain_loop(rows)


@st.composite
def left_padded_rows(draw):
    width = draw(st.integers(2, 5))
    lengths = draw(st.lists(st.integers(1, width), min_size=1, max_size=4).filter(lambda n: max(n) > 1))
    items = st.integers(1, N_ITEMS - 1)
    return [[0] * (width - n) + draw(st.lists(items, min_size=n, max_size=n)) for n in lengths]


@settings(max_examples=40)
@given(left_padded_rows(), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 20.0]))
def test_loss_equals_a_plain_loop_on_any_rows(rows, seed, scale):
    assert_equals_plain_loop(rows, seed, scale)


def test_positions_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_SCORES_AT_ONCE", 20)
    monkeypatch.setattr(cross_entropy, "_FEWEST_POSITIONS", 1)
    for rows in ROWS.values():
        assert_equals_plain_loop(rows)


def test_gradients_equal_finite_differences():
    hidden, rows, items, vectors, log_p = inputs(ROWS["items shared between rows"])
    assert torch.autograd.gradcheck(
        lambda h, v: in_batch_debiased_loss(h, rows, items, v, log_p), (hidden, vectors), fast_mode=True
    )


def test_the_pad_may_be_missing_among_the_items():
    hidden, rows, items, vectors, log_p = inputs(ROWS["pads"])
    assert items[0] == 0
    expected = in_batch_debiased_loss(hidden, rows, items, vectors, log_p)
    assert in_batch_debiased_loss(hidden, rows, items[1:], vectors[1:], log_p) == expected


def test_pads_and_items_of_the_own_row_do_not_count():
    hidden, rows, items, vectors, log_p = inputs([[0, 1, 2, 3], [0, 0, 4, 5]])
    loss = in_batch_debiased_loss(hidden, rows, items, vectors, log_p)
    loss.backward()
    assert not hidden.grad[0, 0].any() and not vectors.grad[0].any()
    # Item 1 is a candidate in the second row alone.
    pushed = torch.autograd.functional.jacobian(
        lambda v: in_batch_debiased_loss(hidden.detach(), rows, items, v, log_p), vectors.detach()
    )[1]
    direction = hidden.detach()[1, 2]
    assert torch.allclose(pushed / pushed.norm(), direction / direction.norm())


def test_multiplicity_of_negatives_counts():
    once = inputs([[0, 1, 2], [0, 3, 4], [0, 5, 6]])
    hidden, _, _, _, log_p = once
    vectors = torch.ones(8, 5, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2], [0, 3, 4], [0, 3, 6]])
    loss = in_batch_debiased_loss(hidden * 0, rows, torch.arange(8), vectors, log_p * 0)
    # Four candidates beside the target of the first row; three, where item 3 is in the row itself.
    assert loss.item() == pytest.approx((math.log(5) + 2 * math.log(4)) / 3)


def test_half_precision_inputs_are_computed_in_float32():
    hidden, rows, items, vectors, log_p = inputs(ROWS["pads"])
    hidden, vectors = hidden.detach().bfloat16().requires_grad_(), vectors.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_batch_debiased_loss(hidden, rows, items, vectors, log_p.float())
    loss.backward()
    expected = in_batch_debiased_loss(hidden.float(), rows, items, vectors.float(), log_p.float())
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert hidden.grad.dtype == torch.bfloat16 and vectors.grad.dtype == torch.bfloat16


def test_extreme_scores_stay_finite():
    hidden, rows, items, vectors, log_p = inputs(ROWS["items shared between rows"], scale=200.0)
    loss = in_batch_debiased_loss(hidden.float(), rows, items, vectors.float(), log_p.float())
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all() and vectors.grad.isfinite().all()


def test_popularity_is_clamped_at_one():
    result = log_popularity(COUNTS)
    clamped = [max(int(count), 1) for count in COUNTS[1:]]
    expected = [0.0] + [math.log(count / sum(clamped)) for count in clamped]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-6, rtol=0)
    assert result.dtype == torch.float32


def test_popularity_power():
    assert torch.equal(log_popularity(COUNTS, 0.0)[1:], torch.full((8,), -math.log(8)))
    weights = COUNTS.clamp(min=1)[1:].double().sqrt()
    torch.testing.assert_close(log_popularity(COUNTS, 0.5)[1:], (weights / weights.sum()).log().float())
    assert log_popularity(COUNTS, 1500.0).isfinite().all()


def test_unseen_items_may_be_candidates():
    hidden, rows, items, vectors, _ = inputs([[1, 2, 3], [4, 5, 6]])
    assert COUNTS[3] == 0
    assert in_batch_debiased_loss(hidden, rows, items, vectors, log_popularity(COUNTS)).isfinite()


@pytest.mark.parametrize(
    ("rows", "message"), [([[1, 2, 0], [1, 2, 3]], "left-padded"), ([[0, 0, 1], [0, 0, 2]], "the batch has none")]
)
def test_rows_without_a_target_are_refused(rows, message):
    with pytest.raises(PerPEFTError, match=message):
        in_batch_debiased_loss(*inputs(rows))


@pytest.mark.parametrize("power", [-0.5, math.inf, math.nan])
def test_wrong_power_names_the_key(power):
    with pytest.raises(PerPEFTError, match="popularity_power"):
        InBatchLoss(power)
