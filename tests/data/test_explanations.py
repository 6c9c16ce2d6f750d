"""The side file of explanations: what is read, and what is refused where."""

import json

import numpy as np
import pandas as pd
import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.data.explanations import are_interactions, read_explanations

USERS, ITEMS = {"007": 1, "b": 2}, {"1.0": 1, "y": 2}
ROW = {"user_id": "007", "item_id": "1.0", "explanation": "it is red"}


def read(tmp_path, *rows):
    path = tmp_path / "toy.explanations.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_explanations(path, USERS, ITEMS)


def test_rows_get_ids_and_keep_their_texts(tmp_path):
    rows = read(tmp_path, ROW, ROW | {"user_id": "b", "feature": "red", "timestamp": 12})
    assert rows["user_id"].tolist() == [1, 2] and rows["item_id"].tolist() == [1, 1]
    assert rows["feature"].tolist() == ["", "red"] and "headline" not in rows and "timestamp" not in rows


def test_ratings_are_numbers(tmp_path):
    rows = read(tmp_path, ROW | {"rating": 4}, ROW | {"rating": 2.5, "item_id": "y"})
    assert rows["rating"].tolist() == [4.0, 2.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"user_id": "7"}, "line 2 has the user '7', which has no interactions"),
        (ROW | {"item_id": "1"}, "line 2 has the item '1', which has no interactions"),
        ({"user_id": "007", "item_id": "1.0"}, "line 2 has no explanation"),
        (ROW | {"item_id": "y", "explanation": "  "}, "line 2 has an empty explanation"),
        (ROW | {"item_id": "y", "rating": "4"}, 'line 2: rating is "4", not double'),
        (ROW | {"item_id": "y", "feature": ["red"]}, "line 2: feature is .*, not a text"),
        (ROW | {"user_id": 7}, "line 2: user_id is 7, not a text"),
        (ROW, "line 2 has an item that its user has explained before"),
        ("{oops", "line 2"),
        ("[1, 2]", "line 2"),
        ("\n\n" + json.dumps(ROW | {"item_id": "1"}), "line 4 has the item '1'"),
    ],
)
def test_bad_lines_are_named(tmp_path, row, message):
    with pytest.raises(PerPEFTError, match=message):
        read(tmp_path, ROW, row)


def test_bad_ratings_fields_and_files_are_named(tmp_path):
    with pytest.raises(PerPEFTError, match="line 1 has no rating between 1 and 5"):
        read(tmp_path, ROW | {"rating": 9})
    with pytest.raises(PerPEFTError, match="no line has the field 'item_id'"):
        read(tmp_path, {"user_id": "b", "explanation": "x"})
    with pytest.raises(PerPEFTError, match="no line has the field 'user_id'"):
        read(tmp_path)
    with pytest.raises(PerPEFTError, match="nothing.jsonl is missing"):
        read_explanations(tmp_path / "nothing.jsonl", USERS, ITEMS)


def test_interactions_are_told_from_others():
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 20, 80), rng.integers(1, 30, 80)
    rows = pd.DataFrame({"user_id": rng.integers(1, 25, 300), "item_id": rng.integers(1, 40, 300)})
    known = set(zip(users.tolist(), items.tolist(), strict=True))
    expected = [pair in known for pair in rows.itertuples(index=False, name=None)]
    assert are_interactions(rows, HistoryIndex.from_pairs(users, items, 20)).tolist() == expected
    assert 0 < sum(expected) < 300
