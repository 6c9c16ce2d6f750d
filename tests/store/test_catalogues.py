"""Kept item vectors are the ones that were written, or none."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_perpeft.core import whole
from recbole_perpeft.store.catalogues import KeptCatalogues

SHAPE = (5, 3)


@pytest.fixture(scope="module")
def vectors():
    return {name: torch.randn(SHAPE) for name in ("global", "0", "1")}


@pytest.fixture(scope="module")
def written(vectors, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "catalogues.safetensors"
    KeptCatalogues(path).write("digest", vectors)
    return path


def test_vectors_come_back(written, vectors):
    kept = KeptCatalogues(written)
    for name, tensor in vectors.items():
        assert torch.equal(kept.read(name, "digest", SHAPE), tensor)
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    (written.parent / "other").touch()
    assert written.stat().st_mode == (written.parent / "other").stat().st_mode  # for all who may read a run


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"of": "other"}, "other weights, content or settings"),
        ({"name": "2"}, "lacks 2"),
        ({"shape": (5, 4)}, "another shape"),
    ],
)
def test_others_are_refused_and_the_log_says_so_once(written, caplog, change, why):
    caplog.set_level(logging.INFO)
    kept = KeptCatalogues(written)
    for _ in range(2):
        assert kept.read(**{"name": "0", "of": "digest", "shape": SHAPE} | change) is None
    assert [why in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("made", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"")])
def test_what_is_no_such_file_is_refused(tmp_path, made):
    path = tmp_path / "catalogues.safetensors"
    made(path)
    assert KeptCatalogues(path).read("0", "digest", SHAPE) is None


@given(place=st.integers(0), value=st.integers(1, 255), length=st.none() | st.integers(0, 900))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_the_written_vectors_or_none(written, vectors, tmp_path, place, value, length):
    content = bytearray(written.read_bytes())
    content[place % len(content)] ^= value
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content[:length])
    for name, tensor in vectors.items():
        found = KeptCatalogues(path).read(name, "digest", SHAPE)
        assert found is None or torch.equal(found, tensor)


def test_a_full_disk_leaves_no_file_and_the_run_goes_on(tmp_path, vectors, monkeypatch, caplog):
    path = tmp_path / "catalogues.safetensors"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.Path, "replace", full)
    KeptCatalogues(path).write("digest", vectors)
    assert "no item vectors are kept" in caplog.text and "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
