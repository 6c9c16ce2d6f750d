"""Whether the user groups of a model are the same ones when it is trained again, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from recbole_perpeft.studies.compare.records import DatasetRecord, ModelRecord
from recbole_perpeft.studies.report.tables import Cell, Table

_TITLES = {
    "groups": "groups",
    "seeds": "between seeds",
    "regroupings": "at a regrouping",
    "first": "last and first groups",
    "kept_global": "keep the global module",
}
_NOTE = (
    "Adjusted Rand index (1: the same groups, 0: as much alike as by chance), means: of each two seeds' groups of the "
    "test users; of the groups before and after a regrouping; of those after the last regrouping and those that the "
    "personalised stage began with. Keep the global module: share of the groups for which no epoch of their own was "
    "better on their valid users (shared_in_groups: freeze)."
)


def stability(record: DatasetRecord) -> pd.DataFrame:
    """How stable groups are, a row a model with groups.

    Returns:
        Columns model, groups (mean number), seeds, regroupings and first (adjusted Rand indices, means), kept_global
        (share of groups). NaN where there is nothing to compare.
    """
    if record.rows is None:
        return pd.DataFrame(columns=["model", *_TITLES])
    _, of_user = np.unique(record.rows.users, return_index=True)
    rows = []
    for model in record.trained:
        groups = [record.rows.groups[model.name, seed][of_user] for seed in _with_groups(record, model)]
        if not groups or all(len(np.unique(each[each >= 0])) < 2 for each in groups):
            continue
        moves = [run.result.get("regroupings") or [] for run in model.runs.values()]
        bests = [run.result.get("group_best_epochs") or [] for run in model.runs.values()]
        rows.append(
            {
                "model": model.name,
                "groups": _mean([len(np.unique(each[each >= 0])) for each in groups]),
                "seeds": _mean([_agreement(*pair) for pair in combinations(groups, 2)]),
                "regroupings": _mean([move["rand_index"] for of_run in moves for move in of_run]),
                "first": _mean([of_run[-1]["rand_index_first"] for of_run in moves if of_run]),
                "kept_global": _mean([best is None for of_run in bests for best in of_run]),
            }
        )
    return pd.DataFrame(rows, columns=["model", *_TITLES])


def _with_groups(record: DatasetRecord, model: ModelRecord) -> list[int]:
    return [seed for seed in model.runs if (model.name, seed) in record.ranked.groups]


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    both = (one >= 0) & (other >= 0)
    return float(adjusted_rand_score(one[both], other[both]))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def stability_table(record: DatasetRecord) -> Table:
    """`stability` as a table, without columns that have nothing to show."""
    table = stability(record)
    shown = [name for name in _TITLES if table[name].notna().any()]
    forms = dict.fromkeys(shown, "{:.2f}") | {"groups": "{:.1f}", "kept_global": "{:.0%}"}
    rows = [
        [Cell(row["model"]), *(Cell("" if pd.isna(row[name]) else forms[name].format(row[name])) for name in shown)]
        for row in table.to_dict("records")
    ]
    return Table("Stability of groups", ["model", *(_TITLES[name] for name in shown)], rows, _NOTE)
