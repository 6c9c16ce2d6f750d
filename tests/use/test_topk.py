"""The best items in chunks are those of a sort of the whole table."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use.topk import Candidates, best_items
from support.candidates import drawn_candidates


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(1, 50))
@settings(max_examples=40)
def test_chunks_find_what_a_sort_finds(seed, n_items, n_users, k, items_at_once):
    rng = np.random.default_rng(seed)
    candidates = drawn_candidates(rng, n_items)
    table = rng.permutation(n_users * (n_items + 1)).reshape(n_users, -1).astype("float32")
    rows, items = np.nonzero(rng.random((n_users, n_items + 1)) < 0.3)
    barred = candidates.place[items] >= 0
    seen = (rows[barred], items[barred])
    scores = torch.from_numpy(table)[:, candidates.tensor]
    found, values = best_items(lambda part: scores[:, part].clone(), candidates, seen, k, items_at_once)
    for user in range(n_users):
        had = set(seen[1][seen[0] == user])
        expected = sorted((item for item in candidates.ids if item not in had), key=lambda item: -table[user, item])[
            :k
        ]
        assert found[user].tolist() == [*expected, *[-1] * (k - len(expected))]
        assert values[user, : len(expected)].tolist() == table[user, expected].tolist()


def test_rows_of_candidates_are_a_view_where_they_follow_one_another():
    vectors = torch.randn(6, 2)
    assert Candidates(np.array([1, 2, 3]), 6).of(vectors).data_ptr() == vectors[1].data_ptr()
    assert torch.equal(Candidates(np.array([1, 4]), 6).of(vectors), vectors[[1, 4]])


def test_scores_that_are_no_numbers():
    candidates, nobody = Candidates(np.array([1, 2]), 3), np.empty(0, np.int64)
    with pytest.raises(PerPEFTError, match="no numbers"):
        best_items(lambda part: torch.full((1, 2), torch.nan), candidates, (nobody, nobody), 1)
