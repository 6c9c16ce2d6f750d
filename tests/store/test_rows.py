import os
import pickle

import numpy as np
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.store import rows as rows_module
from recbole_perpeft.store.rows import MappedRows, RowFiles, UnusableRowsError, computed_rows

N_ROWS = 5
VALUES = np.arange(N_ROWS * 6, dtype="<f4").reshape(N_ROWS, 2, 3) + 1


@pytest.fixture
def files(tmp_path):
    files = RowFiles(tmp_path, {"values": ("<f4", (2, 3))}, N_ROWS)
    files.create()
    files.write(3, {"values": VALUES[3:]})
    files.write(0, {"values": VALUES[:3]})
    return files


def test_rows_and_pads(files):
    mapped = MappedRows(files)
    taken = mapped.take("values", torch.tensor([4, -1, 0, 4]))
    np.testing.assert_array_equal(taken.numpy(), [VALUES[4], np.zeros((2, 3)), VALUES[0], VALUES[4]])
    assert mapped.take("values", torch.tensor([], dtype=torch.long)).shape == (0, 2, 3)
    for wrong in (5, -2):
        with pytest.raises(PerPEFTError, match="has rows 0 to 4, not"):
            mapped.take("values", torch.tensor([0, wrong]))


def test_a_file_is_what_numpy_writes(files, tmp_path):
    np.save(tmp_path / "theirs.npy", VALUES)
    assert files.path("values").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    assert files.n_bytes() == VALUES.nbytes


def test_reading_releases_pages_and_stays_right(files, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_MAPPED_BYTES", 20)
    mapped = MappedRows(files)
    for _ in range(2):
        np.testing.assert_array_equal(mapped.take("values", torch.arange(N_ROWS)).numpy(), VALUES)


def test_a_pickled_copy_maps_the_same_files(files):
    data = pickle.dumps(MappedRows(files))
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).take("values", torch.arange(N_ROWS)).numpy(), VALUES)


def test_nothing_that_a_reader_does_changes_the_files(files):
    before = files.path("values").read_bytes()
    mapped = MappedRows(files)
    mapped.take("values", torch.arange(N_ROWS)).mul_(2)
    mapped._arrays["values"].mul_(2)
    assert files.path("values").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete array"),
        (lambda path: path.write_bytes(b""), "not a complete array"),
        (lambda path: path.unlink(), "not a complete array"),
        (lambda path: np.save(path, np.zeros((N_ROWS, 3))), "holds float64"),
    ],
)
def test_files_that_hold_something_else(files, damage, message):
    damage(files.path("values"))
    with pytest.raises(UnusableRowsError, match=message):
        MappedRows(files)


def test_files_in_another_order_are_not_complete(files):
    """What is written into them by rows would be read by columns."""
    assert files.are_complete()
    np.save(files.path("values"), np.asfortranarray(VALUES))
    assert not files.are_complete()
    with pytest.raises(UnusableRowsError, match="not one after the other"):
        MappedRows(files)


def test_rows_that_need_no_manifest_are_computed_once(tmp_path, caplog):
    files, n_computed = RowFiles(tmp_path, {"a-1": ("<f4", (2, 3)), "b-1": ("<f4", ())}, N_ROWS), []

    def compute():
        n_computed.append(1)
        for part in torch.from_numpy(VALUES).split(2):
            yield [part, part[:, 0, 0].double()]

    for _ in range(2):
        mapped = computed_rows(files, "rows", compute)
        np.testing.assert_array_equal(mapped.take("a-1", torch.arange(N_ROWS)).numpy(), VALUES)
        assert mapped.take("b-1", torch.arange(N_ROWS)).tolist() == VALUES[:, 0, 0].tolist()
    assert len(n_computed) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.json", "a-1.npy", "a-1.npy.lock", "b-1.npy"]
    whole = files.path("a-1").read_bytes()
    files.path("a-1").write_bytes(whole[:-1])
    computed_rows(files, "rows", compute)
    assert files.path("a-1").read_bytes() == whole and len(n_computed) == 2
    assert "a-1.npy: not a complete array" in caplog.text and "computed again" in caplog.text


@pytest.mark.parametrize("name", ["a-1.npy", "b-1.npy", "a-1.json"])
def test_changed_rows_that_need_no_manifest_are_computed_again(tmp_path, caplog, name):
    """Of the same size and kind, whether the time of their change tells or not; a whole copy is taken as it is."""
    files = RowFiles(tmp_path, {"a-1": ("<f4", (2, 3)), "b-1": ("<f4", ())}, N_ROWS)

    def compute():
        yield [torch.from_numpy(VALUES), torch.from_numpy(VALUES[:, 0, 0])]

    computed_rows(files, "rows", compute)
    file, (whole, stamp) = tmp_path / name, ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns)
    for place in range(len(whole) - 4, 0, -9):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        os.utime(file, ns=(stamp + place, stamp + place))
        mapped = computed_rows(files, "rows", compute)
        np.testing.assert_array_equal(mapped.take("a-1", torch.arange(N_ROWS)).numpy(), VALUES)
        assert mapped.take("b-1", torch.arange(N_ROWS)).tolist() == VALUES[:, 0, 0].tolist()
    assert name in caplog.text and "computed again" in caplog.text
    caplog.clear()
    os.utime(files.path("b-1"))
    computed_rows(files, "rows", compute)
    (tmp_path / "a-1.json").unlink()  # as version 0.1.0 left it
    computed_rows(files, "rows", compute)
    assert not caplog.text


def test_rows_without_a_manifest_are_whole_or_not_there(tmp_path):
    files = RowFiles(tmp_path, {"a-1": ("<f4", (2, 3))}, N_ROWS)

    def compute():
        yield [torch.from_numpy(VALUES[:2])]
        raise OSError(28, "No space left on device")

    with pytest.raises(PerPEFTError, match="the disk is full; 0 MiB are needed for the rows"):
        computed_rows(files, "rows", compute)
    assert [path.name for path in tmp_path.iterdir()] == ["a-1.npy.lock"]
