"""Damaged caches and full disks: one clear error, exit status 2, and nothing half-written left behind."""

import json
import os
import shutil
from pathlib import Path

import pytest

from recbole_perpeft.cli.main import main
from recbole_perpeft.store.inputs import CHUNK_ROWS
from recbole_perpeft.store.rows import RowFiles
from recbole_perpeft.store.table import Manifest
from support.shop import cut_in_half, disk_full, results


def contents(folder):
    """What the files of a cache hold, but when they were written."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["stamps"].clear()
    return {file.name: file.read_bytes() for file in folder.glob("*.npy")} | {"manifest.json": manifest}


@pytest.mark.parametrize("name", ["pixel_values.npy", "input_ids.npy", "image_digest.npy", "manifest.json"])
def test_a_cache_cut_in_half_is_built_again(shop, caplog, name):
    before = shop.run()
    (folder,) = shop.caches()
    whole = contents(folder)
    cut_in_half(folder / name)
    after = shop.run()
    assert "computed again" in caplog.text and name in caplog.text
    assert contents(folder) == whole
    assert results(after)["test_result"] == results(before)["test_result"]
    shop.check_nothing_half_written()


def test_frozen_content_vectors_cut_in_half_are_computed_again(shop, caplog):
    before = shop.run(peft_type="none")
    (file,) = shop.cache.glob("content-vectors-*.npy")
    whole = file.read_bytes()
    cut_in_half(file)
    after = shop.run(peft_type="none")
    assert "computed again" in caplog.text and file.name in caplog.text
    assert file.read_bytes() == whole
    assert results(after)["test_result"] == results(before)["test_result"]


def test_a_cache_of_another_processor(shop):
    shop.run()
    (mine,) = shop.caches()
    shop.run(max_text_length=8)
    (other,) = set(shop.caches()) - {mine}
    shutil.rmtree(mine)
    other.rename(mine)
    shop.fails(mine, "cache of another processor", "text_length", "delete this one")
    shutil.rmtree(mine)
    assert shop.run().is_dir()


def disk_full_at_the_sync(monkeypatch):
    monkeypatch.setattr(RowFiles, "sync", disk_full)


def disk_full_at_the_reservation(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", disk_full)


def disk_full_at_the_second_array(monkeypatch):
    write, rows_written = RowFiles.write, []

    def write_a_little(files, start, rows):
        if rows_written:
            disk_full()
        rows_written.append(start)
        write(files, start, dict(list(rows.items())[:1]))
        disk_full()

    monkeypatch.setattr(RowFiles, "write", write_a_little)


def disk_full_at_the_manifest(monkeypatch):
    monkeypatch.setattr(Manifest, "write", disk_full)


@pytest.mark.parametrize(
    "fill",
    [
        disk_full_at_the_reservation,
        disk_full_at_the_second_array,
        disk_full_at_the_sync,
        disk_full_at_the_manifest,
    ],
)
def test_a_full_disk_while_caching(shop, monkeypatch, fill):
    with monkeypatch.context() as patch:
        fill(patch)
        shop.fails(shop.cache, "the disk is full", "MiB", "Free space")
        assert not shop.caches()
    shop.run()
    assert len(shop.caches()) == 1


def test_a_full_disk_while_content_vectors_are_written(shop, monkeypatch):
    shop.run()
    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "write", disk_full)
        shop.fails(shop.cache, "the disk is full", "MiB are needed for the content vectors", peft_type="none")
    assert not list(shop.cache.glob("content-vectors-*.npy"))


@pytest.mark.parametrize("name", ["last.pth", "metrics.csv", "test_ranks.parquet"])
def test_a_full_disk_while_a_run_writes(shop, monkeypatch, name):
    replace = Path.replace

    def refuse(path, target):
        if Path(target).name == name:
            disk_full()
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        shop.fails(name, "No space left", run_folder=shop.root / "run")
    assert shop.main(f"--resume={shop.root / 'run'}")[0] == 0


def test_chunks_of_a_killed_build_are_checked(shop, monkeypatch):
    """What a killed build has left is not believed: a chunk whose bytes are not those of its journal is made anew."""
    shop.run()
    (folder,) = shop.caches()
    whole = contents(folder)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "sync", lambda files: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(shop.words()) == 130
    (draft,) = shop.cache.glob(".*.draft")
    pixels = draft / "pixel_values.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1000] + bytes(1000))
    shop.run()
    assert contents(folder) == whole
    assert CHUNK_ROWS >= 32
