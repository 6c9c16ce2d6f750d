"""Pickles from outside: plain data comes back, attacks do nothing but raise."""

import os
import pickle
import pickletools
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.convert.reading.pickles import UnsafePickleError, load_plain, load_stored_image
from recbole_perpeft.core.errors import PerPEFTError

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
    ),
    max_leaves=20,
)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Assigned:
    """Carries attributes, as an object of a class that the reader does not know."""

    def __init__(self, **values):
        vars(self).update(values)


class LMDB_Image:  # noqa: N801 - the name in the authors' files
    def __init__(self, **values):
        vars(self).update(values)


@settings(max_examples=100)
@given(value=PLAIN, protocol=st.integers(3, 5))
def test_plain_data_comes_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickle") / "file"
    path.write_bytes(pickle.dumps(value, protocol))
    loaded = load_plain(path)
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_before_it_happens(tmp_path, protocol):
    made = tmp_path / "made"
    attack = pickle.dumps({"a": [1, Attack(made)]}, protocol)
    (tmp_path / "file").write_bytes(attack)
    with pytest.raises(UnsafePickleError, match=r"file: this pickle is not read.*it has the instruction \w+"):
        load_plain(tmp_path / "file")
    with pytest.raises(UnsafePickleError):
        load_stored_image(attack, "key")
    assert not made.exists()
    pickle.loads(attack)  # it is a real attack
    assert made.exists()


ATTACKS = {
    "old instructions": b"(S'/tmp'\nios\nmkdir\n.",
    "object": b"(cos\nmkdir\nS'/tmp'\no.",
    "global": b"cos\nsystem\n.",
    "persistent": b"Pname\n.",
    "persistent, binary": b"Vname\nQ.",
    "extension": b"\x80\x02\x82\x01.",
    "keyword arguments": pickle.PROTO + b"\x04" + pickle.NEWOBJ_EX + b".",
    "memory for the memo": b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",
    "memory for bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "cut off": pickle.dumps(list(range(1000)))[:-5],
    "empty": b"",
    "no pickle": b"\xff\xd8\xff\xe0",
    "stack": b".",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_and_damage_are_refused(tmp_path, attack):
    (tmp_path / "file").write_bytes(attack)
    with pytest.raises(UnsafePickleError, match="file: this pickle"):
        load_plain(tmp_path / "file")
    with pytest.raises(UnsafePickleError, match="key: "):
        load_stored_image(attack, "key")


def test_a_missing_pickle_is_an_error(tmp_path):
    with pytest.raises(PerPEFTError, match="nothing: No such file"):
        load_plain(tmp_path / "nothing")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_stored_images_come_back(monkeypatch, protocol):
    stored = LMDB_Image(channels=3, size=(2, 1), image=b"abcdef", id=b"B00")
    expected = {"channels": 3, "size": (2, 1), "image": b"abcdef", "id": b"B00"}
    if protocol == 2:  # which cannot hold bytes
        stored.image, stored.id = "abcdef", "B00"
        expected |= {"image": "abcdef", "id": "B00"}
    assert load_stored_image(pickle.dumps(stored, protocol), "key") == expected
    # As written by a script.
    monkeypatch.setattr(sys.modules["__main__"], "LMDB_Image", LMDB_Image, raising=False)
    monkeypatch.setattr(LMDB_Image, "__module__", "__main__")
    data = pickle.dumps(stored, protocol)
    assert b"__main__" in data
    assert load_stored_image(data, "key") == expected


def test_other_classes_are_refused():
    for value in (Assigned(image=b""), Assigned, {"image": b""}, LMDB_Image(image=Assigned())):
        with pytest.raises(UnsafePickleError, match="key: "):
            load_stored_image(pickle.dumps(value), "key")


def test_one_pickle_cannot_change_how_the_next_is_read():
    """BUILD on the class itself instead of an object."""
    name = LMDB_Image.__name__.encode()
    attack = b"\x80\x02c__main__\n" + name + b"\nN}X\x05\x00\x00\x00imageX\x04\x00\x00\x00evils\x86b."
    assert [op.name for op, _, _ in pickletools.genops(attack)][-2] == "BUILD"
    with pytest.raises(UnsafePickleError):
        load_stored_image(attack, "key")
    assert load_stored_image(pickle.dumps(LMDB_Image(size=1)), "key") == {"size": 1}
