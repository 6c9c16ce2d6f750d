"""A complete cache on a disk that may only be read serves like any other: what is kept for speed alone is left out."""

import errno
import os
from pathlib import Path

import pytest

from recbole_perpeft.core import whole
from recbole_perpeft.store.inputs import ContentCache
from recbole_perpeft.store.states import HiddenStateSettings
from support.small_processor import SmallProcessor
from support.small_recipe import load, make_items
from support.state_caches import open_or_build


@pytest.fixture
def read_only(monkeypatch):
    """Nothing may be written; a superuser may write wherever permissions forbid it."""

    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    def start():
        monkeypatch.setattr(whole.FileLock, "acquire", refuse)
        for name in ("touch", "write_text", "write_bytes", "unlink", "replace", "mkdir"):
            monkeypatch.setattr(Path, name, refuse)

    return start


def test_hidden_states_are_used_and_hashes_not_remembered(bert, shop, computed, read_only):
    built = open_or_build(shop, bert)
    n = len(computed)
    (shop.parent / "cache" / "encoder-hashes.json").unlink()  # of an encoder that lies elsewhere on this machine
    read_only()
    assert open_or_build(shop, bert).fingerprint == built.fingerprint
    assert len(computed) == n


def test_remembered_hashes_need_no_lock(bert, shop, read_only, monkeypatch):
    open_or_build(shop, bert)
    read_only()
    monkeypatch.setattr("recbole_perpeft.pretrained.locate.large_file_hash", None)
    open_or_build(shop, HiddenStateSettings(bert.encoder, (1,), max_length=8, dtype="float32", device="cpu"))


def test_pixels_of_photos_that_were_copied_are_used(tmp_path, read_only):
    folder = make_items(tmp_path / "shop")
    first = ContentCache.open_or_build(load(folder), SmallProcessor(), tmp_path / "cache", show_progress=False)
    for image in (folder / "images").iterdir():
        os.utime(image, ns=(1, 1))
    read_only()
    again = ContentCache.open_or_build(load(folder), SmallProcessor(), tmp_path / "cache", show_progress=False)
    assert again.fingerprint == first.fingerprint
