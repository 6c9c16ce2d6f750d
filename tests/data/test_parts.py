"""Logs whose parts are files: the rows of a part are its targets, and histories run across the parts in time."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import PHASES, history_of
from recbole_perpeft.runs.run import create_dataset
from support.logs import rows_of

WIDTH = 3
NAMES = ["train", "valid", "test"]
ROW = st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from("ijklm"), st.integers(0, 6))


@st.composite
def parts(draw):
    """Rows of three files; the train part has two rows of one user, times of the parts overlap."""
    train = [
        ("a", "i", draw(st.integers(0, 6))),
        ("a", "j", draw(st.integers(0, 6))),
        *draw(st.lists(ROW, max_size=6)),
    ]
    return [draw(st.permutations(train)), draw(st.lists(ROW, max_size=5)), draw(st.lists(ROW, min_size=1, max_size=5))]


def write(log_folder, rows_of_parts, names=NAMES):
    for name, rows in zip(names, rows_of_parts, strict=True):
        log_folder.write(rows, part=f".{name}")


def expected_rows(rows_of_parts, place):
    """(user, latest items before, target) of a part, from what is written."""
    found = []
    known = [(row, number) for number, rows in enumerate(rows_of_parts[: place + 1]) for row in rows]
    for user in {row[0] for row, _ in known}:
        sequence = sorted(((row, number) for row, number in known if row[0] == user), key=lambda pair: pair[0][2])
        items = [row[1] for row, _ in sequence]
        found += [
            (user, tuple(items[max(0, at - WIDTH) : at]), items[at])
            for at in range(1, len(items))
            if sequence[at][1] == place
        ]
    return sorted(found)


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT"])
@given(rows_of_parts=parts())
@settings(max_examples=30)
def test_sequences_run_across_the_parts(log_folder, model, rows_of_parts):
    write(log_folder, rows_of_parts)
    dataset = create_dataset(log_folder.config(model, benchmark_filename=NAMES, MAX_ITEM_LIST_LENGTH=WIDTH))
    built = dataset.build()
    for place in (0, 1, 2):
        expected = expected_rows(rows_of_parts, place)
        found = rows_of(dataset, built[place])
        if place or model == "SASRec":
            assert found == expected
        else:  # in a row of several targets, those in front have shorter histories
            assert sorted(newest(found)) == sorted(newest(expected))


def newest(rows):
    """User, item before the target, target."""
    return [(user, history[-1], target) for user, history, target in rows]


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
@given(rows_of_parts=parts())
@settings(max_examples=20)
def test_a_part_stands_for_its_rows(log_folder, model, rows_of_parts):
    write(log_folder, rows_of_parts)
    dataset = create_dataset(log_folder.config(model, benchmark_filename=NAMES))
    built = dataset.build()
    for phase, earlier in (("valid", rows_of_parts[:1]), ("test", rows_of_parts[:2])):
        users, items = history_of(built, phase).pairs()
        pairs = zip(dataset.id2token("user_id", users), dataset.id2token("item_id", items), strict=True)
        assert sorted(pairs) == sorted(row[:2] for rows in earlier for row in rows)
    counts = {dataset.id2token("item_id", item): n for item, n in built[0].item_counter.items()}
    assert counts == {item: [row[1] for row in rows_of_parts[0]].count(item) for item in counts}
    if model == "BPR":
        targets = [(part.inter_feat["user_id"].numpy(), part.inter_feat["item_id"].numpy()) for part in built]
        for (users, items), rows in zip(targets, rows_of_parts, strict=True):
            pairs = zip(dataset.id2token("user_id", users), dataset.id2token("item_id", items), strict=True)
            assert sorted(pairs) == sorted(row[:2] for row in rows)


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT", "BPR"])
@pytest.mark.parametrize(("name", "lengths"), [("test", [0, 1]), ("dev", [1, 0])])
def test_two_parts(log_folder, model, name, lengths):
    write(log_folder, [[("a", "i", 1), ("a", "j", 2)], [("a", "k", 3)]], ["train", name])
    built = create_dataset(log_folder.config(model, benchmark_filename=["train", name])).build()
    assert len(built) == len(PHASES) and [len(part) for part in built[1:]] == lengths


@pytest.mark.parametrize("names", [["train"], [], ["train", "test", "valid", "more"], ["train", "train"]])
def test_other_numbers_of_parts_are_refused(log_folder, names):
    with pytest.raises(PerPEFTError, match="name the files of the train, valid and test part"):
        log_folder.config("BPR", benchmark_filename=names)


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT"])
def test_targets_without_a_history_are_told(log_folder, model, caplog):
    write(log_folder, [[("a", "i", 1), ("a", "j", 2)], [], [("b", "k", 3), ("a", "k", 3)]])
    with caplog.at_level(logging.WARNING, "recbole_perpeft"):
        built = create_dataset(log_folder.config(model, benchmark_filename=NAMES)).build()
    assert len(built[2]) == 1 and "1 row(s) of the test part are the first of their users" in caplog.text


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT"])
def test_a_train_part_without_sequences(log_folder, model):
    write(log_folder, [[("a", "i", 1), ("b", "j", 2)], [], [("a", "k", 3)]])
    with pytest.raises(PerPEFTError, match="no user has two rows in the train part"):
        create_dataset(log_folder.config(model, benchmark_filename=NAMES)).build()


def test_a_row_without_a_time_is_named_with_its_file(log_folder):
    write(log_folder, [[("a", "i", 1), ("a", "j", 2)], [("a", "k", 3), ("a", "k", "")], [("a", "k", 3)]])
    with pytest.raises(PerPEFTError, match=r"log\.valid\.inter: 1 row\(s\) have no finite timestamp: line 3"):
        create_dataset(log_folder.config("BPR", benchmark_filename=NAMES))
