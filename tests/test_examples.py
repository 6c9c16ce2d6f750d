"""The notebooks run from top to bottom, as plain Python, on the bundled catalogue cut small."""

import json
import os
import re

import pytest

from recbole_perpeft.models.ways import WAYS
from recbole_perpeft.nn.losses import LOSSES
from support.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook, kind):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def shop_floor(small_aspects, tmp_path_factory):
    """A working directory in which `dataset_atomic/aspects` is the small catalogue, with its caches."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "dataset_atomic").mkdir()
    os.symlink(small_aspects / "aspects", folder / "dataset_atomic" / "aspects")
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, shop_floor, monkeypatch):
    monkeypatch.chdir(shop_floor)
    for registry in (WAYS, LOSSES):
        monkeypatch.setattr(registry, "_added", dict(registry._added))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names = {"__name__": f"examples_{path.stem}"}
    for number, code in enumerate(cells(notebook, "code")):
        exec(compile(code, f"{path.name}, cell {number}", "exec"), names)
    if path.stem == "own_shop":
        # Customers buy one colour: after four epochs the list says so.
        bought = names["listed"]["item_id"].map(names["names"]).str.split().str[0]
        assert len({*bought[:4]}) == 1 and len(bought) == 5  # what is left of the favourite colour, then another
    else:
        assert names["result"]["test_result"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_holds_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert cells(notebook, "markdown")[0].startswith("# ")


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["first_run", "own_shop", "your_own_loss"]
