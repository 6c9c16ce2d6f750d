"""Checkpoints and run folders that cannot be used: one clear error, status 2, and nothing half-written left behind."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_perpeft.cli.main import main
from support.shop import cut_in_half, sasrec_words


@pytest.fixture
def sasrec_run(shop):
    _, out, _ = shop.main(*sasrec_words(shop))
    return Path(out.split("run folder: ")[1].strip())


def test_a_checkpoint_of_another_model(shop, sasrec_run):
    shop.fails(sasrec_run, "SASRec, not PerPEFT", words=[f"--resume={sasrec_run}", "--model=PerPEFT"])
    mine = shop.run()
    shutil.copy(sasrec_run / "last.pth", mine / "last.pth")
    shop.fails(mine / "last.pth", "a checkpoint of SASRec, not of PerPEFT", words=[f"--resume={mine}"])
    shop.fails("best.pth", "last.pth", words=[f"--resume={mine / 'best.pth'}"])


class Malice:
    """Runs code where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def checkpoints_that_are_none(mark):
    good = Path("last.pth")
    yield lambda path: path.write_bytes(pickle.dumps(Malice(mark), protocol=2))
    yield lambda path: torch.save({"format": "recbole_perpeft checkpoint", "model": Malice(mark)}, path)
    yield lambda path: torch.save({"format": "recbole_perpeft checkpoint"}, path)
    yield lambda path: torch.save([1, 2, 3], path)
    yield lambda path: path.write_bytes(b"")
    yield lambda path: path.write_bytes(b"PK\x03\x04 not really")
    yield lambda path: path.write_text("hello\n")
    yield lambda path: cut_in_half(path.with_name(good.name))


def test_files_that_are_no_checkpoints_are_named_and_run_no_code(shop):
    folder, mark = shop.run(), shop.root / "mark"
    last, whole = folder / "last.pth", (folder / "last.pth").read_bytes()
    for spoil in checkpoints_that_are_none(mark):
        last.write_bytes(whole)
        spoil(last)
        shop.fails(last, "not a checkpoint of recbole_perpeft", words=[f"--resume={folder}"])
        assert main(["recommend", "--model_file", str(last), "--users", "x"]) == 2
        shop.check_error(shop.capsys.readouterr().err, [last])
        assert not mark.exists()


def test_a_damaged_checkpoint_is_named_wherever_it_is_cut(shop):
    folder = shop.run()
    last, whole = folder / "last.pth", (folder / "last.pth").read_bytes()
    for size in np.random.default_rng(3).integers(1, len(whole), 10):
        last.write_bytes(whole[:size])
        shop.fails(last, words=[f"--resume={folder}"])


def swap_two_items(lines):
    first, second = sorted({line.split(b"\t")[1] for line in lines[1:]})[:2]
    names = {first: second, second: first}
    rows = [line.split(b"\t") for line in lines[1:]]
    return [lines[0], *(b"\t".join([user, names.get(item, item), time]) for user, item, time in rows)]


def add_an_interaction(lines):
    user, item, _ = lines[1].split(b"\t")
    return [*lines, b"\t".join([user, item, b"2000000000"])]


@pytest.mark.parametrize("change", [swap_two_items, add_an_interaction, lambda lines: [lines[0], *lines[:0:-1]]])
@pytest.mark.parametrize("model", ["PerPEFT", "SASRec"])
def test_data_that_changed_before_a_run_is_resumed(shop, sasrec_run, change, model):
    folder = shop.run() if model == "PerPEFT" else sasrec_run
    shop.edit(shop.log, change)
    shop.fails(folder, "other data", shop.log, words=[f"--resume={folder}", "--epochs=2"])


def test_lists_need_the_ids_of_the_training(shop):
    folder = shop.run()
    user = shop.log.read_text().splitlines()[1].split("\t")[0]
    words = ["recommend", "--model_file", str(folder), "--users", user, "--k", "3"]
    shop.edit(shop.log, add_an_interaction)
    assert main(words) == 0, "new interactions of known users and items are welcome"
    assert main([*words[:-1], "0"]) == 2
    shop.capsys.readouterr()
    shop.edit(shop.log, swap_two_items)
    assert main(words) == 2
    shop.check_error(shop.capsys.readouterr().err, [folder, "other data"])


def test_run_folders_that_cannot_be_resumed(shop):
    shop.fails("there is no", words=[f"--resume={shop.root / 'nowhere'}"])
    folder = shop.root / "run"
    folder.mkdir()
    shop.fails(folder, "config.yaml", words=[f"--resume={folder}"])
    (folder / "config.yaml").write_text(yaml.safe_dump({"epochs": 1}))
    shop.fails(folder / "config.yaml", "no model", words=[f"--resume={folder}"])
    shop.fails(folder, "--resume=", run_folder=folder)
    other = shop.root / "photos"
    other.mkdir()
    (other / "me.jpg").touch()
    shop.fails(other, "not empty", run_folder=other)
