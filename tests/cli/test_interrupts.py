"""Ctrl-C in the midst of a verb: one sentence, status 130, nothing half-written, also where it was ignored before."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.cli.main import main


def interrupted(*args, **kwargs):
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def told(capsys):
    """Runs a verb as a script does in the background, and gives what it says."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(*words):
        assert main([str(word) for word in words]) == 130
        return [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "WARNING"))]

    yield run
    signal.signal(signal.SIGINT, before)


def test_recommend(told, monkeypatch):
    monkeypatch.setattr("recbole_perpeft.use.recommend.Recommender.from_file", interrupted)
    assert told("recommend", "--model_file=x", "--users=u1") == ["interrupted; the same command goes on from here"]


def test_explain(told, monkeypatch, tmp_path):
    def half(path, **kwargs):
        path.write_text("half")
        interrupted()

    report = SimpleNamespace(rows=SimpleNamespace(to_csv=half))
    monkeypatch.setattr("recbole_perpeft.use.explain.explain", lambda *args: report)
    assert told("explain", "--model_file=x", f"--output={tmp_path / 'x.tsv'}") == ["interrupted; start it again"]
    assert not list(tmp_path.iterdir())


def test_export(told, monkeypatch, tmp_path):
    def half(folder, name, group):
        (folder / name).mkdir()
        interrupted()

    monkeypatch.setattr("recbole_perpeft.use.export.load", lambda *args: ({}, SimpleNamespace(n_groups=0), None))
    monkeypatch.setattr("recbole_perpeft.use.export.union_of", lambda parts: SimpleNamespace(items=[]))
    monkeypatch.setattr("recbole_perpeft.use.export._banks", lambda model: {"": SimpleNamespace(export=half)})
    assert told("export", "--run=x", f"--output={tmp_path / 'out'}") == ["interrupted; start it again"]
    assert not list(tmp_path.iterdir())


def test_convert_keeps_its_images_for_the_next_time(told, monkeypatch, tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + "".join(f"u{n % 2},i{n % 3}\n" for n in range(6)))
    (tmp_path / "photos").mkdir()
    for name in ("i0", "i1", "i2"):
        Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    words = [f"--input={tmp_path / 'log.csv'}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'set'}"]
    with monkeypatch.context() as patched:
        patched.setattr("recbole_perpeft.convert.images.CHUNK_IMAGES", 1)
        patched.setattr("recbole_perpeft.convert.reading.image_files.read_image_file", interrupted)
        assert told("convert", "table", *words, "--no_progress") == [
            "interrupted; start it again to go on with the images"
        ]
    assert not (tmp_path / "set").exists() and (tmp_path / ".set.draft").is_dir()
    assert main(["convert", "table", *words, "--no_progress"]) == 0
    assert not (tmp_path / ".set.draft").exists()


def test_cache(told, monkeypatch, tiny_aspects, tmp_path):
    monkeypatch.setattr("recbole_perpeft.store.encode.process_images", interrupted)
    words = [f"--data_path={tiny_aspects.parent}", "--dataset=aspects", "--image_encoder=aspects-clip"]
    lines = told("cache", *words, f"--cache_folder={tmp_path}", "--no_progress", "--device=cpu", "--layers=full")
    assert lines[-1] == "interrupted; the same command goes on from here"
    assert not list(tmp_path.glob("*-states"))
