"""What all stores have in common: a table that is built once, continued after a kill, and never believed blindly."""

import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.store import rows, table
from recbole_perpeft.store.rows import UnusableRowsError
from recbole_perpeft.store.table import Table
from support.small_recipe import N_ITEMS, SmallRecipe, draw, load, make_items, write_table

ALL = torch.arange(N_ITEMS)
TITLES = [f"Größe {i}" for i in range(N_ITEMS)]


class Shop:
    """A data set, and its table in the folder `cache` beside it."""

    def __init__(self, folder, n=N_ITEMS):
        self.folder = make_items(folder, n)
        self.cache = folder.parent / "cache"
        self.table = self.cache / "table"
        self.draft = self.cache / ".table.draft"

    def build(self, computed=None, **options):
        """The table; the chunks that were computed for it must be those."""
        recipe = SmallRecipe(load(self.folder), **options)
        built = Table.open_or_build(self.table, recipe, show_progress=False)
        assert computed is None or recipe.computed == computed
        return built

    def open(self, **options):
        return Table.open(self.table, SmallRecipe(load(self.folder), **options))

    def files(self):
        return {path.name: path.read_bytes() for path in self.table.iterdir()}

    def image(self, i):
        return self.folder / "images" / f"é{i}.png"


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path / "shop")


def fresh_files(shop, tmp_path):
    """Of an undisturbed build on the same data."""
    Table.open_or_build(tmp_path / "fresh", SmallRecipe(load(shop.folder)), show_progress=False)
    return {path.name: path.read_bytes() for path in (tmp_path / "fresh").glob("*.npy")}


def arrays(shop):
    return {name: data for name, data in shop.files().items() if name.endswith(".npy")}


def test_a_second_opening_computes_nothing(shop, caplog):
    first = shop.build([0, 1, 2])
    second = shop.build([])
    assert (
        second.take("length", ALL).tolist() == first.take("length", ALL).tolist() == [len(title) for title in TITLES]
    )
    assert second.values["n_chunks"] == 3 and "computed again" not in caplog.text
    assert sorted(path.name for path in shop.cache.iterdir()) == ["table", "table.lock"]
    assert set(shop.files()) == {f"{name}.npy" for name in first.files.layout} | {"manifest.json"}


def test_rows_of_tokens(shop):
    built = shop.build()
    assert built.rows_of(np.array(["[PAD]", "é4", "é0"])).tolist() == [-1, 4, 0]
    with pytest.raises(PerPEFTError, match="no item 'é9'"):
        built.rows_of(["é9"])


def test_a_pickled_table_maps_the_same_files(shop):
    built = shop.build()
    data = pickle.dumps(built)
    assert len(data) < 5000
    assert torch.equal(pickle.loads(data).take("pixels", ALL), built.take("pixels", ALL))


def test_the_manifest_is_plain_and_complete(shop):
    shop.build()
    manifest = json.loads((shop.table / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == SmallRecipe.format and manifest["sizes"] == [2, 3] and manifest["chunk_rows"] == 2
    assert [chunk["index"] for chunk in manifest["chunks"]] == [0, 1, 2]
    assert manifest["chunks"][0]["checksums"].keys() == {"length", "pixels", "title_length", "image_digest"}


# Changes of the content


def test_changed_image_of_the_same_size_and_time_is_noticed(shop, caplog):
    path = shop.image(2)
    path.write_bytes(path.read_bytes().ljust(2000, b"\0"))
    status = path.stat()
    first = shop.build()
    before = first.take("pixels", ALL)
    draw(path, 99)
    path.write_bytes(path.read_bytes().ljust(2000, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = shop.build([1]).take("pixels", ALL)
    assert "image of 1 items changed ('é2')" in caplog.text
    assert (before != after).flatten(1).any(1).tolist() == [False, False, True, False, False]
    assert torch.equal(first.take("pixels", ALL), before), "an open table keeps its pixels"


def test_only_the_chunks_of_changed_content_are_computed_again(shop, tmp_path):
    shop.build()
    draw(shop.image(3), 77)
    os.utime(shop.image(0), ns=(1, 1))
    shop.build([1])
    assert arrays(shop) == fresh_files(shop, tmp_path)
    write_table(shop.folder, [(f"é{i}", title + "!" * (i == 4)) for i, title in enumerate(TITLES)])
    assert shop.build([2]).take("length", ALL).tolist()[4] == len(TITLES[4]) + 1


def test_an_image_that_is_lost_or_comes_is_noticed(shop):
    shop.build()
    shop.image(1).rename(shop.folder / "later")
    assert not shop.build([0]).take("pixels", ALL)[1].any()
    (shop.folder / "later").rename(shop.image(1))
    assert shop.build([0]).take("pixels", ALL)[1].any()


def test_touched_or_copied_images_keep_the_table(shop):
    before = (shop.build(), arrays(shop))[1]
    for path in (shop.folder / "images").iterdir():
        os.utime(path, ns=(1, 1))
    shop.build([])
    copied = make_items(shop.folder.parent / "copy" / "shop")
    recipe = SmallRecipe(load(copied))
    Table.open_or_build(shop.table, recipe, show_progress=False)
    assert not recipe.computed
    assert before.pop("image_stamp.npy") != (after := arrays(shop)).pop("image_stamp.npy") and after == before


def test_a_damaged_image_is_told_by_its_row(shop):
    shop.image(3).write_bytes(b"")
    assert shop.build().damaged == shop.build([]).damaged == {3: "the file is empty"}


def test_another_recipe_keeps_nothing(shop, caplog):
    shop.build()
    shop.build([0, 1, 2], name="other")
    assert "the name changed" in caplog.text and "computed again" in caplog.text


def test_build_keeps_nothing_either(shop):
    shop.build()
    recipe = SmallRecipe(load(shop.folder))
    Table.build(shop.table, recipe, show_progress=False)
    assert recipe.computed == [0, 1, 2]


# Damage


def cut_in_half(folder):
    path = folder / "pixels.npy"
    os.truncate(path, path.stat().st_size // 2)


def replace_manifest(text):
    return lambda folder: (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut_in_half, r"pixels\.npy: not a complete array"),
        (lambda folder: (folder / "length.npy").unlink(), r"length\.npy"),
        (lambda folder: np.save(folder / "length.npy", np.zeros((5, 3))), "holds float64"),
        (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
        (replace_manifest('{"format": '), "is no manifest"),
        (replace_manifest("[1]"), "is no manifest"),
        (replace_manifest('{"format": "small table, version 1", "chunks": []}'), "is no manifest"),
        (replace_manifest('{"format": "something else"}'), "'something else'"),
    ],
)
def test_a_damaged_table_is_refused_and_built_again(shop, caplog, damage, part):
    shop.build()
    whole = arrays(shop)
    damage(shop.table)
    with pytest.raises(UnusableRowsError, match=part):
        shop.open()
    shop.build([0, 1, 2])
    assert arrays(shop) == whole and "computed again" in caplog.text


def flip(path, row, row_bytes):
    data = bytearray(path.read_bytes())
    data[len(data) - (N_ITEMS - row) * row_bytes] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "row_bytes"), [("pixels", 18), ("length", 4), ("image_digest", 16)])
def test_a_flipped_bit_is_noticed_at_the_opening_and_its_chunk_computed_again(shop, caplog, name, row_bytes):
    shop.build()
    whole = arrays(shop)
    flip(shop.table / f"{name}.npy", 3, row_bytes)
    message = rf"{name}\.npy: rows 2 to 3 were changed after they were written"
    with pytest.raises(UnusableRowsError, match=message):
        shop.open()
    shop.build([1])
    assert arrays(shop) == whole and f"{name}.npy: rows 2 to 3 were changed" in caplog.text


def test_a_bit_that_flips_later_is_noticed_when_its_chunk_is_first_read(shop):
    shop.build()
    whole = arrays(shop)
    path = shop.table / "pixels.npy"
    status = path.stat()
    flip(path, 3, 18)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as of a disk that lost it
    opened = shop.build([])
    opened.take("pixels", torch.tensor([0, 4, -1]))
    with pytest.raises(PerPEFTError, match=r"pixels\.npy: rows 2 to 3 were changed .* Run again"):
        opened.take("pixels", torch.tensor([0, 2]))
    shop.build([1])
    assert arrays(shop) == whole


def test_copied_files_are_verified_once(shop, monkeypatch):
    shop.build()
    os.utime(shop.table / "pixels.npy", ns=(1, 1))
    verified = []
    checksum = rows.checksum
    monkeypatch.setattr(rows, "checksum", lambda arrays: verified.append(1) or checksum(arrays))
    shop.build([])
    assert len(verified) == 4 * 3
    shop.build([])
    assert len(verified) == 4 * 3


# Builds that are stopped


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "name"),
    [(os, "posix_fallocate"), (rows.RowFiles, "write"), (rows.RowFiles, "sync"), (table.Manifest, "write")],
)
def test_a_full_disk_leaves_nothing(shop, monkeypatch, place, name):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, no_space)
        with pytest.raises(PerPEFTError, match="cache: the disk is full; 0 MiB are needed for the small rows of shop"):
            shop.build()
    assert [path.name for path in shop.cache.iterdir()] == ["table.lock"]
    shop.build([0, 1, 2])


def test_another_error_of_the_disk_is_told(shop, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(shop.draft / "pixels.npy"))

    monkeypatch.setattr(rows.RowFiles, "write", refuse)
    with pytest.raises(PerPEFTError, match=r"pixels\.npy: Input/output error; the small rows of shop cannot be"):
        shop.build()


def interrupt(shop, monkeypatch):
    """Leave a build without its last chunk."""
    add, n_added = table.Journal.add, []

    def stop(journal, entries):
        if len(n_added) == 2:
            raise KeyboardInterrupt
        n_added.append(1)
        add(journal, entries)

    with monkeypatch.context() as patch:
        patch.setattr(table.Journal, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            shop.build()


def test_an_interrupted_build_goes_on(shop, tmp_path, monkeypatch):
    interrupt(shop, monkeypatch)
    with open(shop.draft / "journal.jsonl", "a", encoding="utf-8") as journal:
        journal.write('{"index": 2, "check')
    shop.build([2])
    assert arrays(shop) == fresh_files(shop, tmp_path) and not shop.draft.exists()


@pytest.mark.parametrize("harm", ["image", "title", "row"])
def test_a_resumed_build_trusts_no_outdated_or_lost_chunk(shop, tmp_path, monkeypatch, harm):
    interrupt(shop, monkeypatch)
    if harm == "image":
        draw(shop.image(2), 55)
    elif harm == "title":
        write_table(shop.folder, [(f"é{i}", title + "!" * (i == 2)) for i, title in enumerate(TITLES)])
    else:
        flip(shop.draft / "pixels.npy", 2, 18)
    shop.build([1, 2])
    assert arrays(shop) == fresh_files(shop, tmp_path)


@pytest.mark.parametrize("name", [".table.draft", "table.partial"])
def test_a_build_of_another_recipe_is_not_continued(shop, monkeypatch, name):
    interrupt(shop, monkeypatch)
    shop.draft.rename(shop.cache / name)  # version 0.1.0 named drafts otherwise
    shop.build([0, 1, 2], name="other")
    assert sorted(path.name for path in shop.cache.iterdir()) == ["table", "table.lock"]


BUILDER = """
from pathlib import Path
from recbole_perpeft.store.table import Table
from support.small_recipe import SmallRecipe, load

print("ready", flush=True)
Table.open_or_build(Path({table!r}), SmallRecipe(load(Path({folder!r})), delay=0.02), show_progress=False)
"""


def start_builder(shop):
    code = BUILDER.format(table=str(shop.table), folder=str(shop.folder))
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_killed_build_goes_on(tmp_path):
    shop = Shop(tmp_path / "shop", 200)
    journal = shop.draft / "journal.jsonl"
    with start_builder(shop) as builder:
        deadline = time.monotonic() + 60
        while not journal.exists() or len(journal.read_bytes().splitlines()) < 4:
            assert time.monotonic() < deadline and builder.poll() is None
            time.sleep(0.005)
        builder.send_signal(signal.SIGKILL)
    recipe = SmallRecipe(load(shop.folder))
    Table.open_or_build(shop.table, recipe, show_progress=False)
    assert 0 < len(recipe.computed) <= 97
    assert arrays(shop) == fresh_files(shop, tmp_path)


def test_two_processes_build_one_table(tmp_path):
    shop = Shop(tmp_path / "shop", 100)
    builders = [start_builder(shop) for _ in range(2)]
    for builder in builders:
        builder.communicate(timeout=120)
    assert [builder.returncode for builder in builders] == [0, 0]
    shop.build([])
    assert arrays(shop) == fresh_files(shop, tmp_path)


def test_builders_wait_for_each_other(shop, caplog):
    caplog.set_level(logging.INFO)
    shop.cache.mkdir()
    is_held = threading.Event()

    def hold():
        with FileLock(shop.cache / "table.lock"):
            is_held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    shop.build([0, 1, 2])
    holder.join()
    assert "waiting for it" in caplog.text
