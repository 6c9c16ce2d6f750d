"""Disks that are full at every stage: one sentence that names the place, and nothing half-written."""

import subprocess

import numpy as np
import pytest

from recbole_perpeft.cli.main import main
from recbole_perpeft.store.arrays import write_array
from support.attack.ground import in_one_process


@pytest.fixture
def disk(tmp_path):
    """Makes an empty disk of some KiB and gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(kib):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("no small disk can be made here")
        return folder

    def read_only():
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

    make.read_only = read_only
    yield make
    subprocess.run(["umount", "-l", folder], capture_output=True)


def error_of(capsys, words, carry_out=main):
    assert carry_out(words) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    (error,) = [line for line in captured.splitlines() if line.startswith("error: ")]
    return error


@pytest.fixture
def conversion(tmp_path):
    """Words of a conversion into a folder."""
    rows = "".join(f"u{row % 20},i{row % 60},{row}\n" for row in range(300))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},{'long ' * 50}\n" for item in range(60)))
    files = [f"--input={tmp_path / 'log.csv'}", f"--items={tmp_path / 'items.csv'}"]
    return lambda folder: ["convert", "table", *files, f"--output={folder / 'set'}", "--no_progress"]


@pytest.fixture
def training(toy_settings):
    """Words of a run in a folder."""

    def words(folder):
        settings = toy_settings | {"run_folder": folder / "run", "epochs": 1}
        return ["train", "--model=BPR", *(f"--{key}={value}" for key, value in settings.items())]

    return words


@pytest.mark.parametrize("kib", [4, 8, 16, 20])
def test_a_conversion(conversion, disk, capsys, kib):
    folder = disk(kib)
    error = error_of(capsys, conversion(folder))
    assert str(folder) in error and "No space left on device" in error and "free space" in error
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kib", [4, 8])
def test_a_run(training, disk, capsys, kib):
    folder = disk(kib)
    error = error_of(capsys, training(folder))
    assert str(folder) in error and "No space left on device" in error and "free space" in error
    assert {path.name for path in (folder / "run").iterdir()} <= {"run.log", "tensorboard"}


@pytest.mark.parametrize("verb", ["conversion", "training"])
def test_a_disk_that_may_only_be_read(request, disk, capsys, verb):
    folder = disk(64)
    disk.read_only()
    error = error_of(capsys, request.getfixturevalue(verb)(folder))
    assert str(folder) in error and "Read-only file system" in error
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kib", [4, 16, 32])
def test_a_comparison(toy_settings, disk, capsys, kib):
    """Its runs are elsewhere; the report finds no space, and a second call with space makes it."""
    folder = disk(kib)
    settings = toy_settings | {"epochs": 1}
    words = ["compare", "--models=Pop,BPR", "--seeds=1", *(f"--{key}={value}" for key, value in settings.items())]
    error = error_of(capsys, [*words, f"--output={folder / 'report'}"], in_one_process)
    assert str(folder) in error and "No space left on device" in error and "free space" in error
    assert not list(folder.rglob("*.draft"))
    subprocess.run(["mount", "-o", "remount,size=64M", folder], check=True)
    assert in_one_process([*words, f"--output={folder / 'report'}"]) == 0
    assert (folder / "report" / "report.html").is_file()


@pytest.mark.parametrize("kib", [4, 8])
def test_a_search(toy_settings, tmp_path, disk, capsys, kib):
    folder = disk(kib)
    (tmp_path / "space.yaml").write_text("learning_rate: {loguniform: [1e-4, 1e-2]}\n" + "# long\n" * 2000)
    words = ["search", "--model=BPR", f"--search={tmp_path / 'space.yaml'}", f"--output={folder / 'search'}"]
    words += [f"--{key}={value}" for key, value in toy_settings.items() if key != "runs_folder"]
    error = error_of(capsys, words, in_one_process)
    assert str(folder) in error and "No space left on device" in error and "free space" in error
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_an_array(disk):
    path = disk(4) / "x.npy"
    with pytest.raises(OSError, match="No space left on device"):
        write_array(path, np.zeros(1000))
