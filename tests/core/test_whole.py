"""Files, folders and journals that appear whole or not at all."""

import errno
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import Journal, alone, clear, draft_of, full_disk, put_in_place, remove, written_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with written_whole(file) as draft:
        draft.write_text("new")
        assert file.read_text() == "old" and draft == draft_of(file)
    assert file.read_text() == "new" and names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_file_that_fails_leaves_the_earlier_one(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(type(error)), written_whole(file) as draft:
        draft.write_text("half")
        raise error
    assert file.read_text() == "old" and names_in(tmp_path) == ["a.txt"]


def test_errors_of_the_disk_name_the_file_and_not_its_draft(tmp_path):
    with pytest.raises(PerPEFTError, match="no/a.txt: No such file or directory; free space or choose") as caught:
        with written_whole(tmp_path / "no" / "a.txt"):
            pass
    assert "draft" not in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_a_draft_is_a_file_of_its_own(tmp_path, kind):
    other, draft = tmp_path / "other", draft_of(tmp_path / "a.txt")
    other.write_text("untouched")
    if kind == "file":
        draft.hardlink_to(other)
    else:
        draft.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with written_whole(tmp_path / "a.txt") as given:
        given.write_text("new")
    assert other.read_text() == "untouched" and names_in(tmp_path) == ["a.txt", "other"]
    assert not (tmp_path / "a.txt").is_symlink()


def test_clearing_follows_no_link(tmp_path):
    other, folder = tmp_path / "other", tmp_path / "folder"
    (other / "below").mkdir(parents=True)
    (other / "file").touch()
    folder.symlink_to(other)
    clear(folder)
    assert not folder.is_symlink() and names_in(folder) == []
    for name in ("kept", "link"):
        (folder / name).symlink_to(other)
    clear(folder, kept="kept")
    assert names_in(folder) == [] and names_in(other) == ["below", "file"]


def test_clearing_keeps_one_folder(tmp_path):
    for name in ("kept", "gone"):
        (tmp_path / "folder" / name / "below").mkdir(parents=True)
    (tmp_path / "folder" / "file").touch()
    clear(tmp_path / "folder", kept="kept")
    assert names_in(tmp_path / "folder") == ["kept"] and names_in(tmp_path / "folder" / "kept") == ["below"]


def test_removing_what_is_not_there(tmp_path):
    remove(tmp_path / "nothing")


def test_a_folder_replaces_an_earlier_one_and_what_a_kill_left_of_it(tmp_path):
    folder = tmp_path / "folder"
    for path, content in ((folder, "old"), (tmp_path / ".folder.old", "older"), (draft_of(folder), "new")):
        path.mkdir()
        (path / content).touch()
    put_in_place(draft_of(folder), folder)
    assert names_in(tmp_path) == ["folder"] and names_in(folder) == ["new"]


def test_a_folder_that_cannot_be_named_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    for path, content in ((folder, "old"), (draft_of(folder), "new")):
        path.mkdir()
        (path / content).touch()

    def refuse(path, target):
        if path == draft_of(folder):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        put_in_place(draft_of(folder), folder)
    assert names_in(folder) == ["old"] and names_in(tmp_path) == [".folder.draft", "folder"]


def test_processes_wait_for_each_other(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    order = []

    def make():
        with alone(tmp_path / "new" / "cache"):
            order.append("second")

    with alone(tmp_path / "new" / "cache"):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and "waiting for it" in caplog.text


@pytest.mark.parametrize("patience", [0, 0.1])
def test_patience_ends(tmp_path, patience):
    lock = FileLock(tmp_path / "cache.lock", thread_local=False)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with pytest.raises(PerPEFTError, match="cache is being written by another process; wait for it"):
        with alone(tmp_path / "cache", patience):
            pass
    lock.release()
    with alone(tmp_path / "cache", patience):
        pass
    assert names_in(tmp_path) == ([] if patience == 0 else ["cache.lock"])


def test_who_holds_a_lock_is_told(tmp_path):
    caught = []

    def make():
        with pytest.raises(PerPEFTError) as error, alone(tmp_path, 0, file=tmp_path / "run.lock"):
            pass
        caught.append(str(error.value))

    with alone(tmp_path, 0, file=tmp_path / "run.lock"):
        for signature in (None, "12 elsewhere", "\xff", "many words", ""):
            if signature is not None:
                (tmp_path / "run.lock").write_bytes(signature.encode("latin-1"))
            thread = threading.Thread(target=make)
            thread.start()
            thread.join()
    others = ["12 of elsewhere", *["another process"] * 3]
    holders = [f"process {os.getpid()}", f"process {others[0]}", *others[1:]]
    assert caught == [f"{tmp_path} is being written by {holder}; wait for it" for holder in holders]
    assert names_in(tmp_path) == []


def test_a_lock_of_this_very_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with alone(Path("."), 0):
        assert tmp_path.with_name(f"{tmp_path.name}.lock").is_file()
    assert not tmp_path.with_name(f"{tmp_path.name}.lock").exists()


def test_a_folder_without_a_place_for_the_lock(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PerPEFTError, match="cannot write .*file"), alone(tmp_path / "file" / "cache"):
        pass


def test_a_journal_goes_on_after_the_last_whole_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.resume({"key": 1}) is None
    journal.start({"key": (1, 2)})
    journal.add([{"index": 0}, {"index": 1}])
    with open(journal.file, "a") as file:
        file.write('{"index": 2, "che')
    assert Journal(journal.file).resume({"key": (1, 2)}) == [{"index": 0}, {"index": 1}]
    journal.add([{"index": 3}])
    lines = [json.loads(line) for line in journal.file.read_text().splitlines()]
    assert [line.popitem()[0] for line in lines] == ["crc32"] * 4
    assert lines == [{"key": [1, 2]}, {"index": 0}, {"index": 1}, {"index": 3}]
    assert journal.resume({"key": 3}) is None and names_in(tmp_path) == ["journal.jsonl"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 10_000), piece=st.sampled_from([b"", b"0", b"9", b'"', b"x", b"{", b",", b"null", b"\xff"])
)
def test_a_changed_line_of_a_journal_is_not_believed(tmp_path, place, piece):
    journal, entries = Journal(tmp_path / "journal.jsonl"), [{"index": n, "sums": {"a": 10 + n}} for n in range(3)]
    journal.start({"key": 1}, entries)
    text = journal.file.read_bytes()
    place %= len(text) - 1
    journal.file.write_bytes(text[:place] + piece + text[place + 1 :])
    found = journal.resume({"key": 1})
    assert found is None or found == entries[: len(found)]


@pytest.mark.parametrize("line", ["{}", "[]", "3", "null", '{"crc32": 0}', "[" * 100_000])
def test_a_line_of_a_journal_that_is_none(tmp_path, line):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.start({"key": 1}, [{"index": 0}])
    with open(journal.file, "a") as file:
        file.write(f"{line}\n")
    assert journal.resume({"key": 1}) == [{"index": 0}]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_folder_where_a_library_names_no_file(tmp_path, number):
    with pytest.raises(PerPEFTError, match=f"^cannot write {tmp_path}: .*; free space or choose another folder"):
        with full_disk(tmp_path):
            raise OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError), full_disk(tmp_path):  # of a file that is read
        (tmp_path / "none").read_bytes()
