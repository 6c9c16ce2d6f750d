import math

import torch

from recbole_perpeft.nn.losses.bce import next_item_bce_loss


def test_loss_equals_a_loop():
    torch.manual_seed(0)
    hidden, positive, negative = torch.randn(3, 4, 5, 8, dtype=torch.float64)
    mask = torch.rand(4, 5) > 0.4
    positive_terms, negative_terms = [], []
    for b in range(4):
        for t in range(5):
            if mask[b, t]:
                positive_terms.append(-math.log(1 / (1 + math.exp(-float(hidden[b, t] @ positive[b, t])))))
                negative_terms.append(-math.log(1 - 1 / (1 + math.exp(-float(hidden[b, t] @ negative[b, t])))))
    expected = sum(positive_terms) / len(positive_terms) + sum(negative_terms) / len(negative_terms)
    assert abs(next_item_bce_loss(hidden, positive, negative, mask).item() - expected) < 1e-6


def test_loss_is_float32_and_finite_for_half_precision_and_large_logits():
    hidden = torch.full((1, 2, 4), 100.0, dtype=torch.bfloat16, requires_grad=True)
    loss = next_item_bce_loss(hidden, -hidden, hidden, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()
    assert (hidden.grad[0, 1] == 0).all()
