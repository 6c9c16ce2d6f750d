"""Pipes and devices among the inputs are refused at once: they would be waited for, or read without an end."""

import os
from pathlib import Path

import pytest

from recbole_perpeft.convert.reading.archive import opened_zip
from recbole_perpeft.convert.reading.image_lmdb import images_of_lmdb
from recbole_perpeft.convert.reading.pickles import load_plain
from recbole_perpeft.convert.sources.perpeft_states import load_states
from recbole_perpeft.core.digest import file_hash, large_file_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.lines import text_lines
from recbole_perpeft.data.files.tables import table_rows


def zip_of(path):
    with opened_zip(path):
        pass


READERS = {
    "lines": lambda path: list(text_lines(path)),
    "csv": lambda path: list(table_rows(path, ["a"])),
    "parquet": lambda path: list(table_rows(path, ["a"])),
    "jsonl": lambda path: list(table_rows(path, ["a"])),
    "zip": zip_of,
    "pickle": load_plain,
    "pt": load_states,
    "hash": file_hash,
    "lmdb": lambda path: pytest.importorskip("lmdb") and images_of_lmdb(path, ["a"]),
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused(tmp_path, name):
    pipe, device = tmp_path / f"pipe.{name}", tmp_path / f"device.{name}"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(PerPEFTError, match=f"{path.name}.*not a regular file"):
            READERS[name](path)


def test_hashes_of_weights_read_regular_files():
    with pytest.raises(OSError, match="not a regular file"):
        large_file_hash(Path("/dev/zero"))
