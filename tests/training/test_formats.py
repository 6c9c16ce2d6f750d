"""What is kept on the disk carries the number of its format, and a number that is not known is not guessed at."""

import json
from pathlib import Path

import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.store.inputs import FORMAT
from recbole_perpeft.store.states import StatesRecipe
from recbole_perpeft.store.table import Table
from recbole_perpeft.training.checkpoint import FORMAT_VERSION, load_checkpoint
from support.small_recipe import SmallRecipe, load, make_items

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "golden" / "version-0.1.0"
PAGE = (ROOT / "docs" / "public.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", ("PerPEFT", "IISAN"))
def test_a_checkpoint_of_0_1_0_is_of_a_format_that_is_read_and_a_newer_one_is_refused(model, tmp_path):
    content = load_checkpoint(OLD / model / "best.pth", model)
    assert 1 <= content["format_version"] <= FORMAT_VERSION
    newer = torch.load(OLD / model / "best.pth", weights_only=True) | {"format_version": FORMAT_VERSION + 1}
    torch.save(newer, tmp_path / "best.pth")
    with pytest.raises(PerPEFTError, match=r"best\.pth was written by a newer recbole_perpeft; upgrade"):
        load_checkpoint(tmp_path / "best.pth")


def test_caches_of_0_1_0_have_the_formats_of_today_and_the_page_names_all_formats():
    found = {json.loads(file.read_text(encoding="utf-8"))["format"] for file in OLD.rglob("manifest.json")}
    assert found == {FORMAT, StatesRecipe.format}
    assert all(f"`format: {each}`" in PAGE for each in found) and f"`format_version: {FORMAT_VERSION}`" in PAGE


def test_a_cache_of_another_format_is_computed_anew(tmp_path):
    shop = make_items(tmp_path / "shop")
    Table.open_or_build(tmp_path / "table", SmallRecipe(load(shop)), show_progress=False)
    newer = SmallRecipe(load(shop))
    newer.format = "small table, version 2"
    Table.open_or_build(tmp_path / "table", newer, show_progress=False)
    assert newer.computed == [0, 1, 2]
    assert json.loads((tmp_path / "table" / "manifest.json").read_text(encoding="utf-8"))["format"] == newer.format
