"""A manifest whose entries are not what was written: the table is made anew, or one sentence says what is wrong."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.schema import misfit
from recbole_perpeft.store.table import MANIFEST, Table
from support.small_recipe import SmallRecipe, load, make_items

OTHERS = [None, True, -3, 1.5, "x", [], [3], {}, {"x": 3}, {"0": "x"}, 2**70]
ENTRIES = ["index", "checksums", "damaged"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folders of a small data set and of its table, and what its manifest holds."""
    folder = make_items(tmp_path_factory.mktemp("shop") / "shop")
    table = folder.parent / "cache" / "table"
    Table.open_or_build(table, SmallRecipe(load(folder)), show_progress=False)
    return folder, table, (table / MANIFEST).read_text()


@example("chunk_rows", 2**70)
@example("chunk_rows", 0)
@given(st.sampled_from(["format", "chunk_rows", "chunks", "stamps", "tokens", *ENTRIES]), st.sampled_from(OTHERS))
@settings(max_examples=40)
def test_entries_that_are_not_what_was_written(shop, name, other):
    folder, table, whole = shop
    content = json.loads(whole)
    (content["chunks"][0] if name in ENTRIES else content)[name] = other
    (table / MANIFEST).write_text(json.dumps(content))
    try:
        Table.open_or_build(table, SmallRecipe(load(folder)), show_progress=False)
    except PerPEFTError as error:
        assert "manifest.json" in str(error) or str(table) in str(error)


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (1, int, None),
        (True, int, "a is True"),
        (True, bool, None),
        (1, float, None),
        ("x", float | None, "a is 'x'"),
        (None, float | None, None),
        ([1, "x"], list[int], "a[1] is 'x'"),
        ({"b": [1]}, dict[str, list[str]], "a['b'][0] is 1"),
        ({3: 1}, dict[str, int], "a name in a is 3"),
        ("x" * 9999, int, None),
    ],
)
def test_the_first_entry_of_another_type_is_named(value, hint, found):
    told = misfit({"a": value, "other": 3}, {"a": hint, "missing": int})
    assert told == found or found is None and value == "x" * 9999 and len(told) < 400
