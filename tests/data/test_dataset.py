import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset, SequentialDataset

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex, SequenceDataset, WindowSettings, history_of
from recbole_perpeft.data.log import with_checked_log

# RecBole sorts torch tensors with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

PHASES = ("train", "valid", "test")


@st.composite
def logs(draw, least=2):
    """Rows (user, item, time) of at most 8 users with up to 9 interactions each, many at equal times, in any order."""
    counts = draw(st.lists(st.integers(least, 9), min_size=1, max_size=8))
    rows = [
        (f"u{user}", f"i{draw(st.integers(0, 6))}", draw(st.integers(0, 12)))
        for user, count in enumerate(counts)
        for _ in range(count)
    ]
    return draw(st.permutations(rows))


def sequences(rows):
    """Items of each user in time order; equal times in the order of the rows."""
    by_user = {}
    for user, item, _ in sorted(rows, key=lambda row: float(row[2])):
        by_user.setdefault(user, []).append(item)
    return by_user


def tokens(dataset, ids):
    return [dataset.id2token("item_id", int(item)) for item in ids if item]


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only"])
def test_evaluation_rows_are_recboles(log_folder, mode):
    config = log_folder.config(eval_args={"split": {"LS": mode}, "order": "TO", "mode": "full", "group_by": "user"})

    @given(logs())
    @settings(max_examples=50)
    def check(rows):
        log_folder.write(rows)
        theirs, ours = SequentialDataset(config).build(), SequenceDataset(config).build()
        for phase in (1, 2):
            assert len(ours[phase]) == len(theirs[phase])
            for field in ("user_id", "item_id_list", "item_length", "item_id"):
                assert torch.equal(ours[phase].inter_feat[field], theirs[phase].inter_feat[field]), field

    check()


def test_newest_train_rows_are_the_last_train_items_of_every_user(log_folder):
    config = log_folder.config(train_windows="newest")
    length = config["MAX_ITEM_LIST_LENGTH"]

    @given(logs())
    @settings(max_examples=50)
    def check(rows):
        log_folder.write(rows)
        train = SequenceDataset(config).build()[0]
        expected = sequences(rows)
        assert len(train) == len(expected)
        for row in range(len(train)):
            fields = {field: values[row] for field, values in train.inter_feat.interaction.items()}
            items = expected[train.id2token("user_id", int(fields["user_id"]))]
            # Two items at least stay in the train part.
            items = items[: max(2, len(items) - 2)]
            inputs, targets = items[-(length + 1) : -1], items[-length:][-(len(items) - 1) :]
            assert tokens(train, fields["item_id_list"]) == inputs
            assert tokens(train, fields["pos_item_id_list"]) == targets
            assert int(fields["item_length"]) == len(inputs) == len(targets)
            for field in ("item_id_list", "pos_item_id_list"):
                assert not fields[field][len(inputs) :].any()

    check()


@pytest.mark.parametrize("overlap", [0.0, 0.34, 0.67, 0.99])
def test_every_train_interaction_but_a_users_first_is_a_target_once(log_folder, overlap):
    config = log_folder.config(train_windows="all", train_overlap=overlap)
    width, n_context = config["MAX_ITEM_LIST_LENGTH"], int(overlap * config["MAX_ITEM_LIST_LENGTH"])

    @given(logs())
    @settings(max_examples=50)
    def check(rows):
        log_folder.write(rows)
        train = SequenceDataset(config).build()[0]
        assert train.inter_feat["user_id"].tolist() == sorted(train.inter_feat["user_id"].tolist())
        targets = {}
        for row in range(len(train)):
            fields = {field: values[row] for field, values in train.inter_feat.interaction.items()}
            user, length = train.id2token("user_id", int(fields["user_id"])), int(fields["item_length"])
            inputs, nexts = (fields[field].tolist() for field in ("item_id_list", "pos_item_id_list"))
            assert all(inputs[:length]) and not any(inputs[length:] + nexts[length:])
            context = nexts[:length].count(0)
            assert not any(nexts[:context]) and all(nexts[context:length])
            # Inside a row, an item's target is the next input.
            assert nexts[context : length - 1] == inputs[context + 1 : length]
            known = targets.setdefault(user, [])
            assert context == (n_context if known else 0)
            assert not known or tokens(train, inputs[:context]) == known[-1 - context : -1]
            assert not known or length == width
            known += tokens(train, nexts)
        expected = {user: items[: max(2, len(items) - 2)][1:] for user, items in sequences(rows).items()}
        assert targets == expected
        n_targets = {train.id2token("user_id", user): n for user, n in enumerate(train.target_counts()) if n}
        assert n_targets == {user: len(items) for user, items in expected.items()}

    check()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 12), st.floats(0, 0.99))
def test_no_row_is_wider_than_the_limit_and_few_are_needed(n_targets, width, overlap):
    user, start, end, context = WindowSettings("all", overlap).cut(np.array(n_targets), width)
    assert (end - start >= 1).all() and (end - start + context <= width).all() and (context <= start).all()
    step = width - int(overlap * width)
    assert np.bincount(user).tolist() == [1 + max(0, -(-(n - width) // step)) for n in n_targets]
    alone = WindowSettings("newest", overlap).cut(np.array(n_targets), width)
    assert alone[0].tolist() == list(range(len(n_targets))) and not alone[3].any()
    np.testing.assert_array_equal(alone[2] - alone[1], np.minimum(n_targets, width))


@pytest.mark.parametrize("wrong", [{"train_windows": "some"}, {"train_overlap": 1.0}, {"train_overlap": -0.1}])
def test_wrong_windows_name_the_key(log_folder, wrong):
    log_folder.write([("a", f"i{number}", number) for number in range(4)])
    with pytest.raises(PerPEFTError, match=next(iter(wrong))):
        SequenceDataset(log_folder.config(**wrong)).build()


def test_train_targets_are_recboles(log_folder):
    config = log_folder.config(MAX_ITEM_LIST_LENGTH=9)

    @given(logs())
    @settings(max_examples=15)
    def check(rows):
        log_folder.write(rows)
        theirs, ours = SequentialDataset(config).build()[0], SequenceDataset(config).build()[0]
        positives = ours.inter_feat["pos_item_id_list"]
        for row, user in enumerate(ours.inter_feat["user_id"]):
            of_user = theirs.inter_feat["item_id"][theirs.inter_feat["user_id"] == user]
            assert positives[row][positives[row] > 0].tolist() == of_user.tolist()
        assert "Average actions of items" in str(ours)

    check()


@pytest.mark.parametrize("width", [1, 3])
def test_train_interactions_count_alike_for_all_models(log_folder, width):
    """RecBole's rows lack the first item of each user: popularity metrics could not be compared."""
    sequential, general = log_folder.config(MAX_ITEM_LIST_LENGTH=width), log_folder.config("BPR")

    @given(logs(least=4))
    @settings(max_examples=15)
    def check(rows):
        log_folder.write(rows)
        expected = with_checked_log(Dataset)(general).build()[0]
        for dataset_class in (SequenceDataset, with_checked_log(SequentialDataset)):
            train = dataset_class(sequential).build()[0]
            assert train.item_counter == expected.item_counter and train.user_counter == expected.user_counter

    check()


@pytest.mark.parametrize("windows", ["all", "newest"])
@pytest.mark.parametrize("width", [1, 3])
def test_what_rows_hold_is_known(log_folder, windows, width):
    config = log_folder.config("GlobalPEFT", MAX_ITEM_LIST_LENGTH=width, train_windows=windows)

    @given(logs(least=4))
    @settings(max_examples=15)
    def check(rows):
        log_folder.write(rows)
        train = SequenceDataset(config).build()[0]
        held = {}
        for row in range(len(train)):
            user, length = int(train.inter_feat["user_id"][row]), int(train.inter_feat["item_length"][row])
            items = train.inter_feat["item_id_list"][row][:length].tolist()
            newest = train.inter_feat["pos_item_id_list"][row][length - 1]
            held.setdefault(user, []).extend(items if windows == "all" else [*items, int(newest)])
            if windows == "all" and (row + 1 == len(train) or train.inter_feat["user_id"][row + 1] != user):
                held[user].append(int(newest))
        found = train.interactions_in_rows
        assert {int(user): sorted(found.items[slice(*found.indptr[user : user + 2])]) for user in found.users} == {
            user: sorted(items) for user, items in held.items()
        }

    check()


@pytest.mark.parametrize("phase", PHASES)
def test_histories_of_all_dataset_classes(log_folder, phase):
    sequential, general = log_folder.config(), log_folder.config("BPR")

    @given(logs())
    @settings(max_examples=15)
    def check(rows):
        log_folder.write(rows)
        ours = history_of(SequenceDataset(sequential).build(), phase)
        theirs = history_of(SequentialDataset(sequential).build(), phase)
        np.testing.assert_array_equal(ours.indptr, theirs.indptr)
        np.testing.assert_array_equal(ours.items, theirs.items)
        full = SequenceDataset(sequential)
        for token, items in sequences(rows).items():
            user = full.token2id("user_id", token)
            kept = len(items) - min(2, len(items) - 2) if phase != "test" else len(items) - min(1, len(items) - 2)
            found = ours.items[ours.indptr[user] : ours.indptr[user + 1]]
            assert tokens(full, found) == items[:kept]
        parts = Dataset(general).build()
        users, items = history_of(parts, phase).pairs()
        earlier = parts[:1] if phase != "test" else parts[:2]
        expected = [
            pair
            for part in earlier
            for pair in zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist(), strict=True)
        ]
        assert sorted(zip(users.tolist(), items.tolist(), strict=True)) == sorted(expected)

    check()


def test_unknown_phase(log_folder):
    with pytest.raises(PerPEFTError, match="train, valid, test"):
        history_of([], "final")


def test_history_rows():
    history = HistoryIndex.from_pairs(np.array([2, 1, 2, 4]), np.array([7, 8, 9, 5]), 5)
    positions, items = history.rows(np.array([4, 3, 2, 2]))
    assert positions.tolist() == [0, 2, 2, 3, 3]
    assert items.tolist() == [5, 7, 9, 7, 9]
    assert history.lengths.tolist() == [0, 1, 2, 0, 1]


def test_equal_times_keep_the_order_of_the_file(log_folder):
    log_folder.write([("a", f"i{number}", 5) for number in (4, 2, 9, 1, 3)])
    train, valid, test = SequenceDataset(log_folder.config()).build()
    assert tokens(train, train.inter_feat["item_id_list"][0]) == ["i4", "i2"]
    assert tokens(valid, valid.inter_feat["item_id"]) == ["i1"]
    assert tokens(test, test.inter_feat["item_id"]) == ["i3"]


def test_single_interactions_are_named_and_recboles_filter_helps(log_folder):
    lonely = [(f"lonely{number}", "i1", 3) for number in range(12)]
    log_folder.write([("a", "i1", 1), ("a", "i2", 2), ("a", "i3", 3), *lonely])
    with pytest.raises(PerPEFTError) as error:
        SequenceDataset(log_folder.config()).build()
    message = str(error.value)
    assert "12 user(s)" in message and "lonely0" in message and "lonely9" in message and "lonely10" not in message
    assert 'user_inter_num_interval="[2,inf)"' in message
    train, valid, test = SequenceDataset(log_folder.config(user_inter_num_interval="[2,inf)")).build()
    assert (len(train), len(valid), len(test)) == (1, 0, 1)


def test_an_order_that_is_not_of_time_is_refused(log_folder):
    log_folder.write([("a", f"i{number}", number) for number in range(4)])
    arguments = {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full", "group_by": "user"}
    config = log_folder.config(eval_args=arguments)
    with pytest.raises(PerPEFTError, match="set eval_args"):
        SequenceDataset(config).build()


def test_log_without_times(log_folder):
    log_folder.write([("a", "i1"), ("a", "i2")], header="user_id:token\titem_id:token")
    with pytest.raises(PerPEFTError, match="timestamp:float"):
        SequenceDataset(log_folder.config(load_col={"inter": ["user_id", "item_id"]})).build()
