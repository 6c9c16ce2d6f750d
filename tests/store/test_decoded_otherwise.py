"""Tables from before photos were decoded as they are now: what is right in them stays, the rest is recomputed."""

import json

import numpy as np
import pytest
from PIL import Image

from recbole_perpeft.core.digest import row_digests
from recbole_perpeft.store import recipe as recipe_module
from recbole_perpeft.store.table import Table
from support.small_recipe import SmallRecipe, load, make_items

TRANSPARENT = 3  # in the second chunk of two rows


@pytest.fixture
def shop(tmp_path):
    return make_items(tmp_path / "shop")


@pytest.fixture
def looked_at(monkeypatch):
    paths = []
    original = recipe_module.digest_of_file
    monkeypatch.setattr(recipe_module, "digest_of_file", lambda path: paths.append(path) or original(path))
    return paths


def build(shop):
    recipe = SmallRecipe(load(shop))
    return Table.open_or_build(shop / "table", recipe, show_progress=False), recipe.computed


def make_old(shop):
    """The table as version 1 of decoding left it: no version in its manifest, and digests of bytes alone."""
    built, _ = build(shop)
    manifest = json.loads((built.folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["decoding"]
    digests = np.load(built.folder / "image_digest.npy")
    files = [path.read_bytes() for path in load(shop).image_paths]
    is_other = (digests != row_digests(files)).any(axis=1)
    np.save(built.folder / "image_digest.npy", row_digests(files))
    for chunk in manifest["chunks"]:
        chunk["checksums"].pop("image_digest")
    (built.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return is_other.nonzero()[0].tolist()


def test_only_chunks_of_photos_that_are_decoded_otherwise_are_computed(shop):
    Image.new("RGBA", (20, 15)).save(shop / "images" / f"é{TRANSPARENT}.png")
    assert make_old(shop) == [TRANSPARENT]
    built, computed = build(shop)
    assert computed == [TRANSPARENT // 2]
    assert (np.load(built.folder / "pixels.npy")[TRANSPARENT] == 255).all()
    assert build(shop)[1] == []


def test_tables_of_plain_photos_stay_and_are_looked_at_once(shop, looked_at):
    assert make_old(shop) == []
    assert build(shop)[1] == [] and len(looked_at) == 5
    assert build(shop)[1] == [] and len(looked_at) == 5
