"""What decides the order of a log: exact times, and where they are equal the order of the file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset

from recbole_perpeft.runs.run import create_dataset

NOW = 1_700_000_000  # Unix seconds, whose float32 neighbours are 128 s apart
MODELS = ("SASRec", "BPR", "GlobalPEFT")


def write_shuffled(log_folder, offsets, order):
    """Users of four clicks each at `NOW` plus their offsets, in an order of the lines; the clicks by user."""
    by_user = [
        [(f"u{user}", f"i{user}{n}", NOW + one) for n, one in enumerate(row)] for user, row in enumerate(offsets)
    ]
    clicks = sum(by_user, [])
    lines = [clicks[place] for place in order]
    log_folder.write(lines)
    in_time = sorted(lines, key=lambda click: click[2])
    return {user: [click for click in in_time if click[0] == user] for user, _, _ in lines}


def held_out(config):
    """Valid and test item of every user, as tokens."""
    dataset = create_dataset(config)
    found = {}
    for phase, part in zip(("valid", "test"), dataset.build()[1:], strict=True):
        users, items = part.inter_feat[part.uid_field].numpy(), part.inter_feat[part.iid_field].numpy()
        pairs = zip(dataset.id2token(part.uid_field, users), dataset.id2token(part.iid_field, items), strict=True)
        found |= {(phase, user): item for user, item in pairs}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_clicks_one_second_apart_keep_their_order(log_folder, model):
    rng = np.random.default_rng(0)
    by_user = write_shuffled(log_folder, [range(4)] * 20, rng.permutation(80))
    found = held_out(log_folder.config(model))
    for user, clicks in by_user.items():
        assert (found["valid", user], found["test", user]) == (clicks[-2][1], clicks[-1][1])


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
@settings(max_examples=10)
def test_times_decide_and_the_file_where_they_are_equal(log_folder, model, data):
    offsets = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=4))
    by_user = write_shuffled(log_folder, offsets, data.draw(st.permutations(range(4 * len(offsets)))))
    found = held_out(log_folder.config(model))
    for user, clicks in by_user.items():
        assert (found["valid", user], found["test", user]) == (clicks[-2][1], clicks[-1][1])


@pytest.mark.parametrize("keep, expected", [("first", ("b", "c")), ("last", ("c", "a"))])
def test_repeats_go_by_exact_times(log_folder, keep, expected):
    clicks = [("x", 9), ("a", 10), ("b", 11), ("a", 13), ("c", 12), ("y", 0), ("z", 1)]
    log_folder.write([("u", item, NOW + second) for item, second in clicks])
    found = held_out(log_folder.config("BPR", rm_dup_inter=keep))
    assert (found["valid", "u"], found["test", "u"]) == expected


def test_columns_are_what_recbole_makes_of_them(log_folder):
    log_folder.write([("u", f"i{n}", n) for n in range(4)])
    rows = [
        "item_id:token\tname:token_seq\tprice:float\tsizes:float_seq",
        "i0\ta b c\t1.5\t1 2",
        "i1\t\t\t",
        "i2\ta\t2\t3",
    ]
    (log_folder.path / "log" / "log.item").write_text("\n".join(rows) + "\n")
    config = log_folder.config("BPR", load_col=None, seq_len={"name": 2})
    ours, theirs = create_dataset(config), Dataset(config)
    assert ours.field2seqlen == theirs.field2seqlen and ours.field2type == theirs.field2type
    assert ours.field2source == theirs.field2source and ours.field2bucketnum == theirs.field2bucketnum
    for name, column in theirs.item_feat.items():
        assert [np.array(cell).tolist() for cell in ours.item_feat[name]] == [
            np.array(cell).tolist() for cell in column
        ]
