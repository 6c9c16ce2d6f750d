"""Rows that are encoded by length come back in their order, and little of them is padding."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.store.by_length import encoded_by_length


class Texts:
    def __init__(self, lengths):
        self.lengths = lengths
        self.chunks = []

    def text_lengths(self, rows):
        return None if self.lengths is None else self.lengths[rows]

    def encode(self, rows):
        self.chunks.append(rows)
        return rows.float() * 2, torch.stack([rows, -rows], dim=1)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=40), chunk_size=st.integers(1, 12), known=st.booleans()
)
@settings(max_examples=60)
def test_rows_come_back_in_their_order(lengths, chunk_size, known):
    rows = torch.arange(len(lengths)).flip(0)
    texts = Texts(torch.tensor(lengths) if known else None)
    doubled, pairs = encoded_by_length(texts, rows, chunk_size, texts.encode)
    assert torch.equal(doubled, rows.float() * 2)
    assert torch.equal(pairs, torch.stack([rows, -rows], dim=1))
    assert max(map(len, texts.chunks)) <= chunk_size
    if known and len(lengths) > chunk_size:
        # No order has less padding than the sorted one.
        widths = [int(texts.lengths[chunk].max()) for chunk in texts.chunks]
        assert widths == sorted(widths)
        longest = np.sort(lengths)[[min(k + chunk_size, len(lengths)) - 1 for k in range(0, len(lengths), chunk_size)]]
        assert widths == longest.tolist()


def test_gradients_pass():
    texts = Texts(torch.tensor([3, 1, 2, 5, 4]))
    weights = torch.ones(5, requires_grad=True)
    (found,) = encoded_by_length(texts, torch.arange(5), 2, lambda rows: [weights[rows] * rows])
    (found * torch.arange(5)).sum().backward()
    assert weights.grad.tolist() == [0, 1, 4, 9, 16]
