"""Logs that are numbers from the beginning, from text or from the kept log: the data set is RecBole's own."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset

from recbole_perpeft.core.digest import numbers_hash
from recbole_perpeft.runs.run import create_dataset

HEADER = "user_id:token\titem_id:token\tplace:token\tprice:float\ttimestamp:float"
ROW = st.tuples(
    st.sampled_from("abcd"),
    st.sampled_from("vwxyz"),
    st.sampled_from(["", "NA", "p", "q"]),
    st.sampled_from(["", "1", "2.5"]),
    st.integers(0, 3) | st.floats(0, 3),
)
FILTERS = (
    {},
    {"user_inter_num_interval": "[2,inf)", "item_inter_num_interval": "[2,inf)"},
    {"user_inter_num_interval": "[1,3]"},
    {"user_inter_num_interval": "[4,5];[1,2)", "item_inter_num_interval": "(1,4]"},
    {"item_inter_num_interval": "[3,inf)", "val_interval": {"place": ["p", "q"], "price": "[1,2];(2,3)"}},
    {"val_interval": {"item_id": ["v", "w", "x"], "timestamp": "(0,2.5]", "price": "[0,2)"}},
    {"val_interval": {"place": ["p"]}},
    {"alias_of_item_id": ["place"]},
)


def check_same(ours, theirs):
    """Ids, tokens and all columns."""
    for field, tokens in theirs.field2id_token.items():
        assert ours.field2id_token[field].tolist() == tokens.tolist(), field
        assert ours.field2token_id[field] == theirs.field2token_id[field]
    for name in ("inter_feat", "item_feat"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert ours.field2type == theirs.field2type and ours.field2seqlen == theirs.field2seqlen


@given(
    rows=st.lists(ROW, min_size=3, max_size=12),
    wanted=st.sampled_from(FILTERS),
    has_times=st.booleans(),
    items=st.none() | st.sets(st.sampled_from("wxyz-"), min_size=1),
)
@settings(max_examples=25)
def test_the_data_set_is_that_of_recbole(log_folder, rows, wanted, has_times, items):
    n_columns = 5 if has_times else 4
    header = "\t".join(HEADER.split("\t")[:n_columns])
    log_folder.write([row[:n_columns] for row in rows], header)
    file = log_folder.path / "log" / "log.item"
    file.unlink(missing_ok=True)
    if items:
        file.write_text("item_id:token\tshelf:token\n" + "".join(f"{item}\tp\n" for item in sorted(items)))
    config = log_folder.config("BPR", load_col=None, **wanted)
    try:
        theirs = Dataset(config)
    except ValueError as error:
        with pytest.raises(Exception, match=re.escape(str(error))):
            create_dataset(config)
        return
    read = create_dataset(config)
    check_same(read, theirs)
    assert read.fingerprint["log"] == numbers_hash(read.inter_feat)
    kept = {"keep_log": "always", "cache_folder": str(log_folder.path / "cache"), **wanted}
    config = log_folder.config("BPR", load_col=None, **kept)
    for _ in range(2):  # made, or of other rows or filters; and mapped
        mapped = create_dataset(config)
        check_same(mapped, theirs)
        assert mapped.fingerprint == read.fingerprint


def test_ids_take_four_bytes(log_folder):
    log_folder.write([(f"u{n % 7}", f"i{n % 5}", n) for n in range(1000)])
    dataset = create_dataset(log_folder.config("GlobalPEFT"))
    assert dataset.inter_feat.memory_usage(index=False).sum() == 16 * 1000
    assert dataset.build()[0].inter_feat["user_id"].numpy().dtype == np.int64


def test_what_is_kept_with_one_filter_is_not_taken_for_another(log_folder):
    log_folder.write([(f"u{n % 7 if n < 900 else 9}", f"i{n % 5}", n) for n in range(901)])
    kept = {"keep_log": "always", "cache_folder": str(log_folder.path / "cache")}
    seen = []
    for wanted in ("[1,inf)", "[2,inf)", "[1,inf)"):
        choices = {"user_inter_num_interval": wanted}
        of_text = create_dataset(log_folder.config("GlobalPEFT", **choices)).fingerprint
        assert create_dataset(log_folder.config("GlobalPEFT", **choices, **kept)).fingerprint == of_text
        seen.append(of_text)
    assert seen[0] == seen[2] and seen[0]["log"] != seen[1]["log"] and seen[0]["ids"] != seen[1]["ids"]


def test_a_filter_that_removes_something_counts_without_python_objects(log_folder, monkeypatch):
    for name in ("_filter_by_inter_num", "_filter_by_field_value"):
        monkeypatch.setattr(Dataset, name, None)
    # u0 has 9 items, u8 one; without u8 and his like, i8 has too few, and so on
    log_folder.write([(f"u{user}", f"i{item}", user + item) for user in range(9) for item in range(9 - user)])
    choices = {"user_inter_num_interval": "[3,inf)", "item_inter_num_interval": "[3,inf)"}
    dataset = create_dataset(log_folder.config("BPR", **choices, val_interval={"timestamp": "[0,7]"}))
    log = dataset.inter_feat
    assert len(log) == 30 and log["user_id"].dtype == log["item_id"].dtype == np.int32
    assert log.groupby("user_id").size().min() == log.groupby("item_id").size().min() == 3
