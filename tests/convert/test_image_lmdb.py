"""Images in LMDB files, attacks among them."""

import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from recbole_perpeft.convert.images import convert_images
from recbole_perpeft.convert.reading.image_lmdb import images_of
from recbole_perpeft.core.errors import PerPEFTError

lmdb = pytest.importorskip("lmdb")


class LMDB_Image:  # noqa: N801 - the name in the authors' files
    def __init__(self, pixels, token):
        self.channels, self.size = pixels.shape[2], pixels.shape[:2]
        self.image, self.id = pixels.tobytes(), token


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_lmdb(path, values):
    with lmdb.open(str(path), subdir=False, map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def test_images_of_lmdb(tmp_path):
    pixels = np.full((30, 20, 3), (200, 30, 90), dtype=np.uint8)
    made = tmp_path / "made"
    values = {
        "a": pickle.dumps(LMDB_Image(pixels, "a")),
        "attack": pickle.dumps(Attack(made)),
        "short": pickle.dumps(LMDB_Image(pixels, "s")).replace(bytes([30]), bytes([31]), 1),
        "__keys__": pickle.dumps([b"a"]),
    }
    path = write_lmdb(tmp_path / "x.lmdb", values)
    results = convert_images(images_of(path, ["a", "attack", "short", "none", "k" * 600]), tmp_path / "out")
    assert [result.token for result in results] == ["a", "attack", "short"]
    assert "has the instruction" in results[1].problem and not made.exists()
    assert results[2].problem
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.size == (20, 30)
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 3


ODD_FIELDS = [
    {"size": (10**6, 10**6)},
    {"size": None},
    {"size": (0, 5)},
    {"size": (2, 1000)},
    {"image": "text"},
    {"image": b""},
]


def test_stored_images_with_odd_fields_are_damaged(tmp_path):
    values = {}
    for number, change in enumerate(ODD_FIELDS):
        stored = LMDB_Image(np.zeros((4, 4, 3), dtype=np.uint8), "a")
        vars(stored).update(change)
        values[str(number)] = pickle.dumps(stored)
    results = convert_images(images_of(write_lmdb(tmp_path / "x.lmdb", values), list(values)), tmp_path / "out")
    assert len(results) == len(ODD_FIELDS) and all(result.problem and not result.file for result in results)


def many_images(tmp_path):
    pixels = np.full((40, 40, 3), 90, dtype=np.uint8)
    return write_lmdb(tmp_path / "x.lmdb", {f"i{n:03}": pickle.dumps(LMDB_Image(pixels, n)) for n in range(100)})


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = many_images(tmp_path)
    references = images_of(path, [f"i{n:03}" for n in range(100)])
    os.truncate(path, path.stat().st_size // 8 // 4096 * 4096)
    message = r"x\.lmdb: reading it ends the process that does it \(SIGBUS\): .* copy or download it again"
    with pytest.raises(PerPEFTError, match=message):
        images_of(path, ["i050"])
    with pytest.raises(PerPEFTError, match=message):
        convert_images(references, tmp_path / "out")


def test_a_file_that_holds_up_its_reader_is_named(tmp_path, monkeypatch):
    path = many_images(tmp_path)
    references = images_of(path, ["i001"])
    monkeypatch.setattr("recbole_perpeft.convert.images.LONGEST_CHUNK", 1e-4)
    with pytest.raises(PerPEFTError, match=r"x\.lmdb: reading it takes longer than 0\.0001 seconds"):
        convert_images(references, tmp_path / "out")


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=200))
def test_a_changed_file_gives_images_or_one_error(tmp_path, changes):
    path = many_images(tmp_path)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.unlink()
    path.write_bytes(data)
    try:
        images_of(path, ["i001", "i090"])
    except PerPEFTError as error:
        assert "x.lmdb" in str(error)
    path.unlink()


def test_unusable_image_folders_are_errors(tmp_path, monkeypatch):
    with pytest.raises(PerPEFTError, match="cannot be listed"):
        images_of(tmp_path / "nothing", ["a"])
    with pytest.raises(PerPEFTError, match=r"does not exist"):
        images_of(tmp_path / "nothing.lmdb", ["a"])
    (tmp_path / "other.jpg").touch()
    with pytest.raises(PerPEFTError, match=r"no file is named after an item, as in a\.jpg; it holds other\.jpg"):
        images_of(tmp_path, ["a"])
    (tmp_path / "x.lmdb").write_bytes(b"no database" * 1000)
    with pytest.raises(PerPEFTError, match="not an LMDB file"):
        images_of(tmp_path / "x.lmdb", ["a"])
    path = write_lmdb(tmp_path / "y.lmdb", {"b": b""})
    with pytest.raises(PerPEFTError, match="no key is an item id"):
        images_of(path, ["a"])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(PerPEFTError, match=r"pip install 'recbole-perpeft\[convert\]'"):
        images_of(path, ["b"])
