"""What a service answers."""

import pytest


def rows_of(table, column):
    """Answers as a service gives them."""
    return [
        {
            column: name,
            "group": rows["group"].iloc[0],
            "items": [
                {"item_id": i, "score": pytest.approx(s, abs=1e-5)} for i, s in rows[["item_id", "score"]].values
            ],
        }
        for name, rows in table.groupby(column, sort=False)
    ]
