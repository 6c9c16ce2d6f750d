"""Which parameters the scores of a search depend on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from recbole_perpeft.studies.search.space import SearchSpace

LEAST_TRIALS = 6
_N_TREES, _N_SHUFFLES = 200, 20
_NOT_SET = -1.0


def parameter_importance(table: pd.DataFrame, space: SearchSpace, seed: int = 0) -> dict[str, float]:
    """Share of each parameter in what a random forest knows about the scores (permutation importance, Breiman 2001).

    Args:
        table: a row a trial with `score` and a column a parameter; None where a parameter was not used.
        space: the search space.
        seed: of the forest.

    Returns:
        Shares that sum to 1, largest first; empty with fewer than 6 scores or if all scores are equal.
    """
    scored = table[table["has_model"] & table["score"].notna()]
    scores = scored["score"].to_numpy()
    if len(scored) < LEAST_TRIALS or np.ptp(scores) == 0:
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    keys = [each.key for each in space.parameters]
    features = np.column_stack([_numbers(scored[key]) for key in keys])
    forest = RandomForestRegressor(_N_TREES, random_state=seed, min_samples_leaf=2).fit(features, scores)
    found = permutation_importance(forest, features, scores, n_repeats=_N_SHUFFLES, random_state=seed)
    shares = np.clip(found.importances_mean, 0, None)
    if shares.sum() == 0:
        return {}
    shares = shares / shares.sum()
    return {keys[place]: float(shares[place]) for place in np.argsort(-shares, kind="stable")}


def _numbers(column: pd.Series) -> np.ndarray:
    """Ranks of the values, float64 [n]: trees ask only which of two is larger. Other values go by their name."""
    values = column.map(lambda value: None if value is None or value != value else value)
    present = values.dropna()
    is_number = present.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
    names = present.astype(float) if is_number else present.map(lambda value: json.dumps(value, default=str))
    return names.rank(method="dense").reindex(column.index).fillna(_NOT_SET).to_numpy(dtype=float)
