"""Splits by shares, of each user or of all at one time: which rows they hold, and what came before each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import PHASES
from recbole_perpeft.runs.run import create_dataset
from support.logs import rows_of

NOW = 1_700_000_000  # Unix seconds, whose float32 neighbours are 128 s apart
SHARES = [0.5, 0.25, 0.25]


@st.composite
def logs(draw):
    """Rows of three users with 3 to 6 interactions, all within two minutes, in any order; times differ."""
    users = [user for user in "abc" for _ in range(draw(st.integers(3, 6)))]
    seconds = draw(st.permutations(range(len(users))))
    rows = [(user, f"i{second % 5}", NOW + second) for user, second in zip(users, seconds, strict=True)]
    return draw(st.permutations(rows))


def config_of(log_folder, model, group_by, **more):
    arguments = {"split": {"RS": SHARES}, "order": "TO", "group_by": group_by, "mode": "full"}
    return log_folder.config(model, eval_args=arguments, MAX_ITEM_LIST_LENGTH=9, **more)


def cut(rows):
    """Parts of rows in time; valid and test have a quarter each, rounded down, but one row if train keeps one."""
    test = max(len(rows) // 4, int(len(rows) > 1))
    valid = max(len(rows) // 4, int(len(rows) > 2))
    border = len(rows) - valid - test
    return [rows[:border], rows[border : border + valid], rows[border + valid :]]


def expected_parts(rows, group_by, sequential):
    """(user, items before, target) of each part; the first row of a user is no target of a sequential model."""
    rows = sorted(rows, key=lambda row: row[2])
    targets = []
    for at, (user, item, _) in enumerate(rows):
        before = tuple(other for who, other, _ in rows[:at] if who == user)
        if before or not sequential:
            targets.append((user, before, item))
    if group_by == "user":
        of_users = [cut([target for target in targets if target[0] == user]) for user in "abc"]
        return [sorted(sum(parts, [])) for parts in zip(*of_users, strict=True)]
    return [sorted(part) for part in cut(targets)]


@pytest.mark.parametrize("group_by", ["user", "none", None])
@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
@given(rows=logs())
@settings(max_examples=12)
def test_parts_by_shares(log_folder, model, group_by, rows):
    log_folder.write(rows)
    dataset = create_dataset(config_of(log_folder, model, group_by))
    expected = expected_parts(rows, group_by, model != "BPR")
    for part, targets in zip(dataset.build(), expected, strict=True):
        if "pos_item_id_list" in part.inter_feat:  # our train rows have several targets
            assert rows_of(dataset, part) == targets
            continue
        users, items = (dataset.id2token(name, part.inter_feat[name].numpy()) for name in ("user_id", "item_id"))
        if model == "BPR":
            assert sorted(zip(users, items, strict=True)) == sorted((user, item) for user, _, item in targets)
            continue
        lists = zip(part.inter_feat["item_id_list"], part.inter_feat["item_length"].tolist(), strict=True)
        before = [tuple(dataset.id2token("item_id", list(items[:length]))) for items, length in lists]
        assert sorted(zip(users, before, items, strict=True)) == targets


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
def test_leave_one_out_is_of_each_user_whatever_group_by_says(log_folder, model):
    log_folder.write([(user, f"i{number}", number) for user in "ab" for number in range(8)])
    arguments = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "none"}
    built = create_dataset(log_folder.config(model, eval_args=arguments)).build()
    assert [len(part) for part in built[1:]] == [2, 2] and len(built) == len(PHASES)


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT"])
def test_sequences_without_an_order(log_folder, model):
    log_folder.write([("a", f"i{number}", number) for number in range(8)])
    with pytest.raises(PerPEFTError, match="set eval_args.order to TO"):
        create_dataset(log_folder.config(model, eval_args={"order": "RO"})).build()


def test_an_order_in_time_without_times(log_folder):
    log_folder.write([("a", f"i{number}") for number in range(8)], header="user_id:token\titem_id:token")
    with pytest.raises(PerPEFTError, match="no column 'timestamp'"):
        create_dataset(log_folder.config("BPR", load_col={"inter": ["user_id", "item_id"]})).build()


def test_filters_that_parts_do_not_go_through_are_told(log_folder, caplog):
    for part in ("train", "test"):
        log_folder.write([("a", "i", 1), ("a", "i", 2)], part=f".{part}")
    parts = {"benchmark_filename": ["train", "test"], "rm_dup_inter": "last"}
    assert len(create_dataset(log_folder.config("BPR", **parts)).inter_feat) == 4
    assert "rm_dup_inter is not applied" in caplog.text
