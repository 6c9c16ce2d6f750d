"""What the page of a search shows: its trials, their parameters and curves, and what the scores depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from recbole_perpeft.studies.report.escape import in_html
from recbole_perpeft.studies.report.page import COLOURS, Chapter, add_curve, new_figure
from recbole_perpeft.studies.report.tables import Cell, Table
from recbole_perpeft.studies.search.outcome import SearchReport
from recbole_perpeft.studies.search.space import SearchSpace

LEAST_TRIALS = 6
_N_TREES, _N_SHUFFLES = 200, 20
_NO_RANK = -1.0  # of a parameter that was not used
_LONGEST_LABEL = 24
_N_TICKS = 6
_MOST_TICKS = 10  # more different numbers than this have an axis with even ticks
_MOST_LEVEL_LABELS = 6  # names of more axes stand aslant
_LONGEST_LEGEND = 24
_MOST_EPOCHS_NAMED = 20
_NOT_SET, _GAP = "not set", 0.15  # share of the axis between what is not set and the smallest number


def title(report: SearchReport) -> str:
    """Title of the page."""
    best = report.best or {}
    return "Search: " + (f"{best['model']} on {best['dataset']}" if best else report.folder.name)


def chapters(
    report: SearchReport, importance: Mapping[str, float], curves: Mapping[str, Mapping[int, float]]
) -> list[Chapter]:
    """The page.

    Args:
        report: the outcome of the search.
        importance: share of each parameter; may be empty.
        curves: scores by epoch, by trial.
    """
    n_trials = int(report.table["has_model"].sum())
    figures = {
        "Parameters and scores": _parallel_coordinates(report),
        "Learning curves": _learning_curves(report, curves),
        "Importance of the parameters": _importance(importance, n_trials) if importance else None,
    }
    return [
        Chapter(paragraphs=_summary(report)),
        *(Chapter(name, figures={"": figure}) for name, figure in figures.items() if figure is not None),
        Chapter("Trials", tables=[_trials(report)]),
    ]


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
    return names.rank(method="dense").reindex(column.index).fillna(_NO_RANK).to_numpy(dtype=float)


def _summary(report: SearchReport) -> list[str]:
    counts = ", ".join(f"{number} {status}" for status, number in report.table["status"].value_counts().items())
    lines = [
        f"{len(report.table)} of {report.n_trials} trials ({counts or 'none yet'}); {report.n_epochs:,} epochs of at "
        f"most {report.max_epochs:,}."
    ]
    if report.best:
        values = ", ".join(f"{key}={_short(value)}" for key, value in report.best["parameters"].items())
        lines.append(
            f"Best: trial {report.best['trial']}, {report.valid_metric} {report.best['best_valid_score']:.6f} on the "
            f"valid items after epoch {report.best['best_epoch']}, with {values}."
        )
        if report.unchanged_score is not None:
            lines.append(f"The settings as they are: trial {report.unchanged}, {report.unchanged_score:.6f}.")
        test = report.best["test_result"]
        if test:
            lines.append(
                "On the test items: " + ", ".join(f"{name} {value:.6f}" for name, value in test.items()) + "."
            )
    return lines


def _trials(report: SearchReport) -> Table:
    table = report.table.drop(columns="has_model").rename(columns={"score": report.valid_metric})
    error = table.pop("error")
    if error.notna().any():  # at the end: it is long
        table["error"] = error
    if table["machines"].nunique() == 1:
        table = table.drop(columns="machines")
    rows = [[Cell(_short(value)) for value in row] for row in table.itertuples(index=False)]
    return Table("", list(table), rows)


def _short(value: Any) -> str:
    """A number with few digits; nothing for a parameter that was not used."""
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _parallel_coordinates(report: SearchReport) -> go.Figure | None:
    scored = report.table[report.table["has_model"] & report.table["score"].notna()]
    if scored.empty:
        return None
    used = [key for key in report.parameters if scored[key].notna().any()]
    axes = [_axis(key, scored[key], key in report.logarithmic) for key in used]
    axes.append({"label": in_html(report.valid_metric), "values": scored["score"].tolist()})
    line = {"color": scored["score"].tolist(), "colorscale": "Viridis"}
    aslant = len(axes) > _MOST_LEVEL_LABELS
    plot = go.Parcoords(line=line, dimensions=axes, labelangle=-20 if aslant else 0)
    figure = new_figure(height=480).add_trace(plot)
    figure.update_layout(margin={"t": 120 if aslant else 70, "b": 40, "l": 90, "r": 60})
    return figure


def _axis(key: str, column: pd.Series, is_logarithmic: bool) -> dict[str, Any]:
    present = column.dropna()
    is_number = present.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
    if is_number and present.nunique() > 1:
        return _axis_of_numbers(key, column.astype(float), is_logarithmic)
    labels = present.map(_label)
    ticks = [*sorted(labels.unique()), *([_NOT_SET] if len(present) < len(column) else [])]
    values = labels.reindex(column.index).fillna(_NOT_SET).map(ticks.index)
    return {"label": in_html(key), "values": values.tolist(), "tickvals": list(range(len(ticks))), "ticktext": ticks}


def _axis_of_numbers(key: str, numbers: pd.Series, is_logarithmic: bool) -> dict[str, Any]:
    """Trials that do not use a parameter pass below its smallest value."""
    low, high = numbers.min(), numbers.max()
    chosen = np.sort(numbers.dropna().unique())
    if len(chosen) > _MOST_TICKS:
        chosen = (np.geomspace if is_logarithmic else np.linspace)(low, high, _N_TICKS)
    scale = np.log10 if is_logarithmic else np.asarray
    places, labels = scale(chosen).tolist(), [f"{number:.3g}" for number in chosen]
    values = pd.Series(scale(numbers), index=numbers.index)
    if numbers.isna().any():
        below = places[0] - _GAP * (places[-1] - places[0])
        values, places, labels = values.fillna(below), [below, *places], [_NOT_SET, *labels]
    label = f"{key} (log)" if is_logarithmic else key
    return {"label": in_html(label), "values": values.tolist(), "tickvals": places, "ticktext": labels}


def _label(value: Any) -> str:
    return _short(value)[:_LONGEST_LABEL]


def _learning_curves(report: SearchReport, curves: Mapping[str, Mapping[int, float]]) -> go.Figure | None:
    """Lines have the colours that the parallel coordinates give to scores."""
    shown = [row for row in report.table.itertuples() if curves[row.trial]]
    if not shown:
        return None
    scores = np.array([row.score for row in shown])
    scores = np.nan_to_num(scores, nan=min(scores[~np.isnan(scores)], default=0.0))
    places = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    last = max(max(curves[row.trial]) for row in shown)
    dtick = math.ceil(last / _MOST_EPOCHS_NAMED)
    figure = new_figure("epoch", f"valid {report.valid_metric}", dtick=dtick)
    for row, colour in zip(shown, sample_colorscale("Viridis", places.tolist()), strict=True):
        add_curve(figure, curves[row.trial], row.trial, colour)
    return figure.update_layout(showlegend=len(shown) <= _LONGEST_LEGEND)


def _importance(importance: Mapping[str, float], n_trials: int) -> go.Figure:
    x_title = f"share (permutation importance in a random forest of {n_trials} trials)"
    figure = new_figure(x_title, height=120 + 32 * len(importance))
    names = [in_html(name) for name in importance]
    figure.add_bar(x=list(importance.values())[::-1], y=names[::-1], orientation="h", marker_color=COLOURS[0])
    return figure.update_layout(margin={"l": 200})
