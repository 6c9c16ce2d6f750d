"""What plain data in pickles of others is, once it is read: no bombs, and errors that name key and value."""

import json
import pickle

import numpy as np
import pytest

from recbole_perpeft.convert.reading.pickles import (
    UnsafePickleError,
    load_plain,
    load_stored_image,
    number_in,
    shown,
    text_in,
)
from recbole_perpeft.convert.sources.perpeft import PerPEFTSource
from recbole_perpeft.convert.sources.vip5 import VIP5Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.vip5.visual import read_features


def written(path, value):
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    return path


def doubled(n):
    """A key that holds the tuple before it twice, n times: to hash it takes 2 ** n steps."""
    places = [bytes([place]) for place in range(n)]
    return b"\x80\x02}K\x01\x85" + b"".join(b"q" + place + b"h" + place + b"\x86" for place in places) + b"Ns."


BOMBS = {
    "shared tuples": doubled(60),
    "shared by a copy": b"\x80\x02}K\x01\x85" + b"2\x86" * 60 + b"Ns.",
    "shared by another memo": b"\x80\x04}K\x01\x85"
    + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60))
    + b"Ns.",
    "frozen sets": b"\x80\x04}(K\x01\x91" + b"2\x86" * 60 + b"Ns.",
    "deep tuples": b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"Ns.",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_keys_that_take_for_ever_are_refused(tmp_path, bomb):
    with pytest.raises(UnsafePickleError, match="nested too often"):
        load_plain(written(tmp_path / "file", bomb))
    with pytest.raises(UnsafePickleError, match="nested too often"):
        load_stored_image(bomb, "key")


@pytest.mark.parametrize("protocol", range(6))
def test_usual_sharing_is_read(tmp_path, protocol):
    shared = ("a", 1.5, ["x"])
    rows = [{"sentence": [shared, shared], "all": shared, (1, 2): []} for _ in range(50)]
    assert load_plain(written(tmp_path / "file", pickle.dumps(rows, protocol))) == rows


def test_unhashable_keys_are_a_damaged_pickle(tmp_path):
    with pytest.raises(UnsafePickleError, match="unhashable type"):
        load_plain(written(tmp_path / "file", b"\x80\x02}]Ns."))


def test_messages_stay_short():
    bomb = ["x"]
    for _ in range(40):
        bomb = [bomb] * 40
    for value in (bomb, {"a": bomb}, "x" * 10**6, 10**10_000, {1, 2}, b"x" * 10**6):
        assert len(shown(value)) < 2000
    with pytest.raises(PerPEFTError, match="^file: the key is b'x', not a text"):
        text_in("file", "the key", b"x")
    with pytest.raises(PerPEFTError, match="the key is .*, which is not Unicode"):
        text_in("file", "the key", "\ud800")
    for value in (True, float("nan"), 10**30, "5", None, [1]):
        with pytest.raises(PerPEFTError, match="^file: rating is .*, not a usual number"):
            number_in("file", "rating", value)


@pytest.fixture
def perpeft(tmp_path):
    (tmp_path / "set_final.txt").write_text("u 1\n", encoding="utf-8")
    written(tmp_path / "set_item2id_final.pickle", {1: "B1"})
    written(tmp_path / "set_texts_final.pickle", {"B1": "Cup"})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("item2id", {1: b"B1"}, r"the value of 1 is b'B1', not a text"),
        ("item2id", {(1, 2): "B1"}, r"the key \(1, 2\) is no item number"),
        ("item2id", {True: "B1"}, r"the key True is no item number"),
        ("item2id", {1: "B1", "1": "B2"}, r"the item number 1 is there as a number and as a text"),
        ("item2id", {1: "\ud800"}, r"the value of 1 is .* not Unicode"),
        ("item2id", [1], r"holds \[1\], not a dictionary of item numbers and item ids"),
        ("texts", {"B1": {"red"}}, r"the title of 'B1' is \{'red'\}, not a text"),
        ("texts", {"B1": None}, r"the title of 'B1' is None, not a text"),
        ("texts", {b"B1": "Cup"}, r"a key is b'B1', not a text"),
    ],
)
def test_perpeft_names_key_and_value(perpeft, name, value, message):
    written(perpeft / f"set_{name}_final.pickle", value)
    source = PerPEFTSource(perpeft, "set")
    with pytest.raises(PerPEFTError, match=rf"set_{name}_final.pickle: {message}"):
        list(source.events())
        source.texts(["B1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asin": ["B1"]}, r"asin in row 1 of 'train' is \['B1'\], not a text"),
        ({"reviewerID": 7}, "reviewerID in row 1 of 'train' is 7, not a text"),
        ({"explanation": {"a"}}, "explanation in row 1 of 'train' is {'a'}, not a text"),
        ({"explanation": None}, "explanation in row 1 of 'train' is None, not a text"),
        ({"summary": b"x"}, "summary in row 1 of 'train' is b'x', not a text"),
        ({"overall": "5"}, "overall in row 1 of 'train' is '5', not a usual number"),
        ({"overall": float("nan")}, "overall in row 1 of 'train' is nan, not a usual number"),
    ],
)
def test_vip5_names_row_and_field(tmp_path, change, message):
    (tmp_path / "datamaps.json").write_text(json.dumps({"id2user": {"1": "U"}, "id2item": {"1": "B1"}}))
    (tmp_path / "sequential_data.txt").write_text("1 1\n")
    row = {"reviewerID": "U", "asin": "B1", "overall": 5.0, "explanation": "good", "summary": None}
    written(tmp_path / "exp_splits.pkl", {"train": [row, row | change], "val": [], "test": []})
    with pytest.raises(PerPEFTError, match=rf"exp_splits.pkl: {message}"):
        VIP5Source(tmp_path).side_files(tmp_path, "set", ["B1"], ["U"])
    written(tmp_path / "exp_splits.pkl", {"train": [row], "val": [], "test": []})
    VIP5Source(tmp_path).side_files(tmp_path, "set", ["B1"], ["U"])
    line = json.loads((tmp_path / "set.explanations.jsonl").read_text())
    assert line["rating"] == 5.0 and line["headline"] is None and line["explanation"] == "good"


def test_explanations_of_users_who_leave_are_left_out(tmp_path):
    (tmp_path / "datamaps.json").write_text(json.dumps({"id2user": {"1": "U"}, "id2item": {"1": "B1"}}))
    (tmp_path / "sequential_data.txt").write_text("1 1\n")
    rows = [{"reviewerID": user, "asin": "B1", "overall": 5.0, "explanation": user} for user in ("U", "gone")]
    written(tmp_path / "exp_splits.pkl", {"train": rows, "val": [], "test": []})
    VIP5Source(tmp_path).side_files(tmp_path, "set", ["B1"], ["U"])
    (line,) = (tmp_path / "set.explanations.jsonl").read_text().splitlines()
    assert json.loads(line)["explanation"] == "U"


def test_items_beside_features_are_utf_8(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3), dtype=np.float32))
    (tmp_path / "a.txt").write_bytes(b"i1\ni\xff2\n")
    with pytest.raises(PerPEFTError, match=r"a\.txt, line 2: not UTF-8 at byte 2; save it as UTF-8"):
        read_features(tmp_path / "a.npy")
    (tmp_path / "a.txt").write_bytes(b"i1\r\ni2")
    assert read_features(tmp_path / "a.npy")[0] == ["i1", "i2"]
