"""A kept log is believed where it is that of its text, and made again or left out anywhere else."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import draft_of
from recbole_perpeft.data.files import kept_log as module
from recbole_perpeft.data.files.atomic_table import TableReader
from recbole_perpeft.data.files.coded_log import read_coded
from recbole_perpeft.data.files.kept_log import MANIFEST, folder_of, kept_log

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = ["a\tx\t3", "", "b\ty\t1.5", "a\tNA\t", "b\tü\t3"]
RECIPE = ("\t", None)


def reader_of(path):
    return TableReader(path, lambda name: True, *RECIPE)


def write(path, rows=ROWS):
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")


def opened(path):
    reader = reader_of(path)
    return kept_log(folder_of(path.parent / "cache", path, reader, RECIPE), path, reader)


def folder(path):
    return folder_of(path.parent / "cache", path, reader_of(path), RECIPE)


def check_same(log, path):
    """The log is that of the text, and says the same lines."""
    direct = read_coded(reader_of(path))
    assert log.types == direct.types and log.tokens == direct.tokens
    for name, values in direct.columns.items():
        assert log.columns[name].dtype == values.dtype and log.columns[name].tobytes() == values.tobytes()
    assert len(log.lines) == len(direct.lines) and log.lines.empty.tolist() == direct.lines.empty.tolist()


@pytest.fixture
def text(tmp_path):
    write(tmp_path / "log.inter")
    return tmp_path / "log.inter"


def refuse(*_):
    raise AssertionError("the text is read again")


def test_a_text_is_read_once(text, monkeypatch):
    check_same(opened(text), text)
    monkeypatch.setattr(module, "add_pieces", refuse)
    check_same(opened(text), text)
    os.utime(text, ns=(1, 1))
    check_same(opened(text), text)
    monkeypatch.setattr(module, "large_file_hash", refuse)  # what was compared is noted
    check_same(opened(text), text)
    assert not draft_of(folder(text)).exists()


def test_a_text_that_has_changed_is_read_again(text):
    opened(text)
    for rows in (ROWS[::-1], [*ROWS, "c\tz\t9"]):
        write(text, rows)
        os.utime(text, ns=(1, len(rows) * 10**9 + text.stat().st_ino % 1000))
        check_same(opened(text), text)


@given(data=st.data())
@settings(max_examples=40)
def test_a_damaged_folder_is_made_again(tmp_path_factory, data):
    text = tmp_path_factory.getbasetemp() / "damaged" / "log.inter"
    text.parent.mkdir(exist_ok=True)
    write(text)
    opened(text)
    file = data.draw(st.sampled_from(sorted(folder(text).iterdir())))
    content = bytearray(file.read_bytes())
    way = data.draw(st.sampled_from(["cut", "changed", "gone", "longer"]))
    if way == "changed" and content:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "cut" and content:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif way == "longer":
        content += b"1"
    file.write_bytes(content)
    if way == "gone":
        file.unlink()
    check_same(opened(text), text)


def test_what_a_killed_process_leaves_is_not_believed(text, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "put_in_place", killed)
        patch.setattr(module, "remove", lambda path: None)  # as if it had not lived to do so
        with pytest.raises(KeyboardInterrupt):
            opened(text)
    assert draft_of(folder(text)).is_dir() and not folder(text).exists()
    check_same(opened(text), text)


def test_a_log_of_other_columns_or_of_another_version_is_not_taken(text):
    opened(text)
    manifest = folder(text) / MANIFEST
    written = json.loads(manifest.read_text())
    for change in ({"format": "log 0"}, {"types": {"user_id": "token"}}, {"arrays": {}}, {"n_rows": 1}):
        manifest.write_text(json.dumps(written | change))
        check_same(opened(text), text)


def test_where_nothing_can_be_written_nothing_is_kept(text, monkeypatch, caplog):
    (text.parent / "cache").write_text("no folder")
    assert opened(text) is None and "the log is not kept" in caplog.text
    (text.parent / "cache").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    assert opened(text) is None and "No space left on device" in caplog.text
    assert not folder(text).exists() and not draft_of(folder(text)).exists()


def test_sequences_are_not_kept(text):
    text.write_text("user_id:token\titems:token_seq\na\tx y\n")
    assert opened(text) is None and not (text.parent / "cache").exists()


def test_an_error_of_the_text_keeps_nothing(text):
    write(text, [*ROWS, "a\tb"])
    with pytest.raises(PerPEFTError, match=r"log\.inter, line 7: 2 cell\(s\) instead of 3"):
        opened(text)
    assert not folder(text).exists() and not draft_of(folder(text)).exists()
