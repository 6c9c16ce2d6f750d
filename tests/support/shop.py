"""A small shop in a folder of its own, and the command line on it: what is wrong is told in one error."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from recbole_perpeft.cli.main import main

SETTINGS = {
    "epochs": 1,
    "show_progress": False,
    "use_gpu": False,
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
}
PERPEFT = SETTINGS | {"model": "PerPEFT", "epochs_global": 1, "n_groups": 2, "min_group_size": 1}


class Shop:
    """A copy of the data in a folder of its own, and the command line on it."""

    def __init__(self, root, capsys):
        self.root, self.capsys = root, capsys
        self.data = root / "data" / "aspects"
        self.cache = root / "cache"
        self.log = self.data / "aspects.inter"
        self.items = self.data / "aspects.item"

    def words(self, **settings):
        places = {"data_path": self.data.parent, "cache_folder": self.cache, "runs_folder": self.root / "runs"}
        return [f"--{key}={value}" for key, value in (PERPEFT | places | settings).items()]

    def main(self, *words):
        """Exit status, and what was printed to the standard output and error."""
        status = main(words)
        printed = self.capsys.readouterr()
        return status, printed.out, printed.err

    def run(self, **settings):
        """The folder of a run that succeeds."""
        status, out, err = self.main(*self.words(**settings))
        assert status == 0, err
        return Path(out.split("run folder: ")[1].strip())

    def fails(self, *parts, words=None, **settings):
        """The error of a run that fails; it must hold all `parts`."""
        status, _, err = self.main(*(words or self.words(**settings)))
        assert status == 2, err
        return self.check_error(err, parts)

    def check_error(self, err, parts):
        assert "Traceback" not in err
        assert len(re.findall("^error: ", err, re.MULTILINE)) == 1
        message = err[err.index("error: ") :]
        for part in parts:
            assert str(part) in message
        self.check_nothing_half_written()
        return message

    def check_nothing_half_written(self):
        names = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        assert not [name for name in names if re.search(r"(^|/)\.|\.draft$|\.partial$|\.outdated$", name)]

    def caches(self):
        return [path.parent for path in self.cache.glob("*/manifest.json")]

    def edit(self, file, change):
        """Replace the lines of a file by `change(lines)`."""
        lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
        file.write_bytes(b"\n".join(change(lines)) + b"\n")

    def edit_line(self, file, number, change):
        """Replace one line, counted from 1 as in messages."""
        self.edit(file, lambda lines: [*lines[: number - 1], change(lines[number - 1]), *lines[number:]])

    def item_of_line(self, number):
        return self.items.read_text().splitlines()[number - 1].split("\t")[0]


@pytest.fixture
def shop(tiny_aspects, tmp_path, capsys):
    shutil.copytree(tiny_aspects, tmp_path / "data" / "aspects")
    return Shop(tmp_path, capsys)


def sasrec_words(shop, **more):
    places = {"data_path": shop.data.parent, "runs_folder": shop.root / "runs", "model": "SASRec"}
    return [f"--{key}={value}" for key, value in (SETTINGS | places | more).items()]


def results(folder):
    return json.loads((folder / "result.json").read_text())


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
