"""The HTML page of a search: one file with its plots, which needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_perpeft.core.whole import written_whole

if TYPE_CHECKING:
    from recbole_perpeft.studies.search.report import SearchReport

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1280px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 2px solid #0072B2; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; } td.error { text-align: left; white-space: normal; min-width: 20rem; }
"""
_PLOT = {"displaylogo": False, "responsive": True}
_LONGEST_LABEL = 24
_N_TICKS = 6
_MOST_TICKS = 10  # more different numbers than this have an axis with even ticks
_MOST_LEVEL_LABELS = 6  # names of more axes stand aslant
_LONGEST_LEGEND = 24
_MOST_EPOCHS_NAMED = 20
_NOT_SET, _GAP = "not set", 0.15  # share of the axis between what is not set and the smallest number


def write_page(
    report: SearchReport, importance: Mapping[str, float], curves: Mapping[str, Mapping[int, float]]
) -> None:
    """Write `report.html`.

    Args:
        report: the outcome of the search.
        importance: share of each parameter; may be empty.
        curves: scores by epoch, by trial.
    """
    import plotly.io

    titles = {
        "Parameters and scores": _parallel_coordinates(report),
        "Learning curves": _learning_curves(report, curves),
    }
    if importance:
        titles["Importance of the parameters"] = _importance(importance, int(report.table["has_model"].sum()))
    parts = []
    for place, (title, figure) in enumerate((title, each) for title, each in titles.items() if each is not None):
        figure.update_layout(template="plotly_white")
        plot = plotly.io.to_html(figure, include_plotlyjs=place == 0, full_html=False, config=_PLOT)
        parts.append(f"<h2>{title}</h2>\n{plot}")
    page = "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_title(report)}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{_title(report)}</h1>",
            _summary(report),
            *parts,
            f'<h2>Trials</h2><div class="wide">{_table(report)}</div></body></html>',
        ]
    )
    with written_whole(report.folder / "report.html") as draft:
        draft.write_text(page, encoding="utf-8")


def _title(report: SearchReport) -> str:
    best = report.best or {}
    name = f"{best['model']} on {best['dataset']}" if best else report.folder.name
    return html.escape(f"Search: {name}")


def _summary(report: SearchReport) -> str:
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
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _table(report: SearchReport) -> str:
    table = report.table.drop(columns="has_model").rename(columns={"score": report.valid_metric})
    error = table.pop("error")
    if error.notna().any():  # at the end: it is long
        table["error"] = error
    if table["machines"].nunique() == 1:
        table = table.drop(columns="machines")
    rows = []
    for row in table.itertuples(index=False):
        cells = (
            f'<td class="{name}">{html.escape(_short(value))}</td>' for name, value in zip(table, row, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in table)
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _short(value: Any) -> str:
    """A number with few digits; nothing for a parameter that was not used."""
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _parallel_coordinates(report: SearchReport):
    import plotly.graph_objects as go

    scored = report.table[report.table["has_model"] & report.table["score"].notna()]
    if scored.empty:
        return None
    used = [key for key in report.parameters if scored[key].notna().any()]
    axes = [_axis(key, scored[key], key in report.logarithmic) for key in used]
    axes.append({"label": report.valid_metric, "values": scored["score"].tolist()})
    line = {"color": scored["score"].tolist(), "colorscale": "Viridis"}
    aslant = len(axes) > _MOST_LEVEL_LABELS
    plot = go.Parcoords(line=line, dimensions=axes, labelangle=-20 if aslant else 0)
    figure = go.Figure(plot)
    figure.update_layout(height=480, margin={"t": 120 if aslant else 70, "b": 40, "l": 90, "r": 60})
    return figure


def _axis(key: str, column: pd.Series, is_logarithmic: bool) -> dict[str, Any]:
    present = column.dropna()
    is_number = present.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()
    if is_number and present.nunique() > 1:
        return _axis_of_numbers(key, column.astype(float), is_logarithmic)
    labels = present.map(_label)
    ticks = [*sorted(labels.unique()), *([_NOT_SET] if len(present) < len(column) else [])]
    values = labels.reindex(column.index).fillna(_NOT_SET).map(ticks.index)
    return {"label": key, "values": values.tolist(), "tickvals": list(range(len(ticks))), "ticktext": ticks}


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
    return {"label": label, "values": values.tolist(), "tickvals": places, "ticktext": labels}


def _label(value: Any) -> str:
    return _short(value)[:_LONGEST_LABEL]


def _learning_curves(report: SearchReport, curves: Mapping[str, Mapping[int, float]]):
    """Lines have the colours that the parallel coordinates give to scores."""
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    shown = [row for row in report.table.itertuples() if curves[row.trial]]
    if not shown:
        return None
    scores = np.array([row.score for row in shown])
    scores = np.nan_to_num(scores, nan=min(scores[~np.isnan(scores)], default=0.0))
    places = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    last = max(max(curves[row.trial]) for row in shown)
    figure = go.Figure()
    for row, colour in zip(shown, sample_colorscale("Viridis", places.tolist()), strict=True):
        curve = curves[row.trial]
        figure.add_scatter(
            x=list(curve),
            y=list(curve.values()),
            name=row.trial,
            mode="lines+markers",
            line={"color": colour, "width": 1.5},
            marker={"size": 5},
        )
    figure.update_layout(
        height=420,
        xaxis={"title": "epoch", "dtick": math.ceil(last / _MOST_EPOCHS_NAMED)},
        yaxis_title=f"valid {report.valid_metric}",
        showlegend=len(shown) <= _LONGEST_LEGEND,
        margin={"t": 30, "b": 60},
    )
    return figure


def _importance(importance: Mapping[str, float], n_trials: int):
    import plotly.graph_objects as go

    figure = go.Figure(go.Bar(x=list(importance.values())[::-1], y=list(importance)[::-1], orientation="h"))
    figure.update_traces(marker_color="#0072B2")
    figure.update_layout(
        height=120 + 32 * len(importance),
        xaxis_title=f"share (permutation importance in a random forest of {n_trials} trials)",
        margin={"t": 30, "b": 60, "l": 200},
    )
    return figure
