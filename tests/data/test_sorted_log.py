"""A log sorted in pieces, or whose order is kept: its parts are those of a log that is sorted by time before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.data import history as module
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.files.beside import PREFIX
from recbole_perpeft.data.history import by_user_and_time, of_ranges, windows
from recbole_perpeft.runs.run import create_dataset

ROWS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4) | st.floats(-1, 1)), max_size=60)


@given(rows=ROWS, at_once=st.integers(1, 9))
@settings(max_examples=50)
def test_rows_in_pieces_are_in_the_order_of_one_sort(rows, at_once):
    users = np.array([user for user, _ in rows], dtype=np.int32)
    times = np.array([time for _, time in rows], dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SORTED_AT_ONCE", at_once)
        order = by_user_and_time(users, times, 8)
    assert order.dtype == np.int32 and order.tolist() == np.lexsort((times, users)).tolist()


@given(lengths=st.lists(st.integers(0, 5), max_size=12), width=st.integers(1, 4), at_once=st.integers(1, 5))
@settings(max_examples=50)
def test_windows_and_ranges_are_those_of_a_loop(lengths, width, at_once):
    items, ends = np.arange(1, sum(lengths) + 1, dtype=np.int32), np.cumsum(lengths, dtype=np.int64)
    shorter = np.minimum(lengths, width).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_RANGES_AT_ONCE", at_once)
        found = windows(items, ends, shorter, width)
    rows = [items[end - n : end].tolist() + [0] * (width - n) for end, n in zip(ends, shorter, strict=True)]
    assert found.dtype == np.int32 and found.tolist() == rows
    starts = (ends - lengths).astype(np.int64)
    is_chosen = (np.array(lengths) > 1).astype(bool)
    chosen = [
        place for start, end in zip(starts[is_chosen], ends[is_chosen], strict=True) for place in range(start, end - 1)
    ]
    assert of_ranges(items, starts[is_chosen], ends[is_chosen] - 1).tolist() == items[chosen].tolist()


def check_same(parts, others):
    for part, other in zip(parts, others, strict=True):
        one, two = part.inter_feat.interaction, other.inter_feat.interaction
        assert one.keys() == two.keys()
        assert all(torch.equal(one[field].long(), two[field].long()) for field in one)
        assert all(
            np.array_equal(*pair) for pair in zip(part.phase_history.pairs(), other.phase_history.pairs(), strict=True)
        )
        assert part.user_counter == other.user_counter and part.item_counter == other.item_counter
        assert np.array_equal(part.interactions.indptr, other.interactions.indptr)


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("vwxyz"), st.integers(0, 9)), max_size=12),
    held_out=st.sampled_from(["valid_and_test", "valid_only", "test_only"]),
    overlap=st.sampled_from([0.0, 0.5]),
    least=st.sampled_from([2, 3]),
    data=st.data(),
)
@settings(max_examples=20)
def test_parts_of_a_kept_log_are_those_of_its_text(log_folder, rows, held_out, overlap, least, data):
    rows += [("e", item, 1.6e9 + place // 2) for place, item in enumerate("vwxyvw")]  # equal times
    log_folder.write(rows)
    choices = {
        "eval_args": {"split": {"LS": held_out}, "group_by": "user", "order": "TO", "mode": "full"},
        "train_overlap": overlap,
        "user_inter_num_interval": f"[{least},inf)",
        "MAX_ITEM_LIST_LENGTH": 3,
    }
    text = create_dataset(log_folder.config("GlobalPEFT", **choices))
    parts = text.build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceDataset, "_is_sorted_at_once", False)
        check_same(parts, create_dataset(log_folder.config("GlobalPEFT", **choices)).build())
    cache = log_folder.path / "cache"
    config = log_folder.config("GlobalPEFT", keep_log="always", cache_folder=str(cache), **choices)
    for _ in range(2):  # made, or of other rows or filters; and mapped
        check_same(parts, create_dataset(config).build())
    made = data.draw(st.sampled_from(sorted(cache.glob(f"log-*/{PREFIX}*"))))
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    kept = create_dataset(config)
    check_same(parts, kept.build())
    assert kept.fingerprint == text.fingerprint and made.read_bytes() == content


def test_an_order_is_kept_and_not_made_again(log_folder, monkeypatch):
    log_folder.write([(f"u{n % 7}", f"i{n % 5}", n * 37 % 101) for n in range(100)])
    kept = {"keep_log": "always", "cache_folder": str(log_folder.path / "cache")}
    parts = create_dataset(log_folder.config("GlobalPEFT", **kept)).build()
    monkeypatch.setattr("recbole_perpeft.data.dataset.by_user_and_time", None)
    dataset = create_dataset(log_folder.config("GlobalPEFT", **kept))
    check_same(parts, dataset.build())
    assert {dataset.inter_feat[field].dtype for field in ("user_id", "item_id")} == {torch.int32}
    assert parts[0].inter_feat["item_id_list"].dtype == parts[0].inter_feat["pos_item_id_list"].dtype == torch.int32
