"""A build that was interrupted goes on; what has changed meanwhile is told, and that alone is computed again."""

import os
from itertools import islice

import numpy as np
import pytest
import torch

from recbole_perpeft.store.table import Table
from support.small_recipe import N_ITEMS, SmallRecipe, draw, load, make_items


def test_touched_images_are_kept_and_the_changed_one_is_named(tmp_path, caplog, monkeypatch):
    folder = make_items(tmp_path / "shop")

    def interrupted(recipe, files, chunks, compute=SmallRecipe.compute):
        yield from islice(compute(recipe, files, chunks), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SmallRecipe, "compute", interrupted)
        Table.open_or_build(tmp_path / "table", SmallRecipe(load(folder)), show_progress=False)
    for path in (folder / "images").iterdir():
        os.utime(path, ns=(1, 1))
    draw(folder / "images" / "é3.png", 77)
    recipe = SmallRecipe(load(folder))
    table = Table.open_or_build(tmp_path / "table", recipe, show_progress=False)
    assert recipe.computed == [1, 2]
    assert "image of 1 items changed ('é3') since its computation was interrupted" in caplog.text
    fresh = Table.build(tmp_path / "fresh", SmallRecipe(load(folder)), show_progress=False)
    for name in ("length", "pixels", "image_digest"):
        rows = torch.arange(N_ITEMS)
        assert np.array_equal(table.take(name, rows), fresh.take(name, rows))
