import os

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.compare.fingerprint import code_fingerprint, data_fingerprint, run_key

SETTINGS = {"model": "BPR", "learning_rate": 0.001, "data_path": "here", "show_progress": True, "seed": 1}


def test_what_changes_numbers_changes_the_key():
    key = run_key(SETTINGS, "cpu", "data", "code")
    assert len(key) == 16 and key == run_key(dict(reversed(SETTINGS.items())), "cpu", "data", "code")
    assert key == run_key(SETTINGS | {"data_path": "there", "show_progress": False}, "cpu", "data", "code")
    others = {
        run_key(SETTINGS | {"learning_rate": 0.01}, "cpu", "data", "code"),
        run_key(SETTINGS | {"seed": 2}, "cpu", "data", "code"),
        run_key(SETTINGS, "cuda", "data", "code"),
        run_key(SETTINGS, "cpu", "other data", "code"),
        run_key(SETTINGS, "cpu", "data", "other code"),
    }
    assert len(others) == 5 and key not in others


def test_changes_of_a_data_set(toy_path):
    folder = toy_path / "toy"
    (folder / "images").mkdir()
    (folder / "images" / "i1.png").write_bytes(b"1234")
    seen = [data_fingerprint(folder, "toy")]
    assert data_fingerprint(folder, "toy") == seen[0]

    log = folder / "toy.inter"
    os.utime(log)  # the content counts
    assert data_fingerprint(folder, "toy") == seen[0]
    log.write_text(log.read_text().replace("u1\ti", "u2\ti", 1))
    seen.append(data_fingerprint(folder, "toy"))
    (folder / "toy.item").write_text("item_id:token\ttitle:token_seq\n")
    seen.append(data_fingerprint(folder, "toy"))
    (folder / "images" / "i1.png").write_bytes(b"123")
    seen.append(data_fingerprint(folder, "toy"))
    (folder / "images" / "i1.png").rename(folder / "images" / "i2.png")
    seen.append(data_fingerprint(folder, "toy"))
    assert len(set(seen)) == 5


def test_a_data_set_that_cannot_be_read(toy_path):
    (toy_path / "toy" / "toy.item").symlink_to(toy_path / "nowhere")
    with pytest.raises(PerPEFTError, match="cannot read the data set"):
        data_fingerprint(toy_path / "toy", "toy")


def test_changes_of_the_code(tmp_path):
    module = tmp_path / "model.py"
    (tmp_path / "studies").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"12")
    module.write_text("rate = 0.1\n")
    before = code_fingerprint(tmp_path)
    module.write_text("# how fast\nrate = (0.1)\n")
    (tmp_path / "studies" / "report.py").write_text("title = ''\n")
    assert code_fingerprint(tmp_path) == before
    module.write_text("rate = 0.2\n")
    assert code_fingerprint(tmp_path) != before
    module.write_text("rate = 0.1\n")
    assert code_fingerprint(tmp_path) == before
    (tmp_path / "weights.bin").write_bytes(b"13")
    assert code_fingerprint(tmp_path) != before
