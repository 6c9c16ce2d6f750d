"""Plots of a report."""

from __future__ import annotations

from itertools import cycle

import plotly.graph_objects as go

from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.compare.sections import metric_names

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers tell models apart without colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "pentagon", "hexagram")


def plots(record: DatasetRecord, baseline: str) -> dict[str, go.Figure]:
    """Figures of one data set by title, without those that have nothing to show."""
    figures = {
        "Quality against trainable parameters": _quality_against(
            record, "trainable_parameters", "trainable parameters"
        ),
        "Quality against seconds an epoch": _quality_against(record, "epoch_seconds", "training seconds an epoch"),
        "Learning curves": _learning_curves(record),
        "Group sizes": _group_sizes(record, baseline),
    }
    return {title: figure for title, figure in figures.items() if figure.data}


def _styles(record: DatasetRecord) -> dict[str, dict[str, str]]:
    names = [model.name for model in record.models]
    looks = zip(names, cycle(_COLOURS), cycle(_SYMBOLS), strict=False)
    return {name: {"color": colour, "symbol": symbol} for name, colour, symbol in looks}


def _figure(x_title: str, y_title: str, **x_axis) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_xaxes(title=x_title, **x_axis)
    figure.update_yaxes(title=y_title)
    return figure


def _quality_against(record: DatasetRecord, column: str, title: str) -> go.Figure:
    metric = record.main_metric
    figure = _figure(title, f"test {metric_names(record).get(metric, metric)}", type="log")
    if not record.models or any(metric not in model.metrics for model in record.models):
        return figure
    values = analysis.cost(record).set_index("model")[column]
    table = analysis.quality(record)
    table = table[table["metric"] == metric].set_index("model")
    for name, style in _styles(record).items():
        if values[name] > 0:  # zero has no place on a logarithmic axis
            spread = {"type": "data", "array": [0 if table["sd"].isna()[name] else table["sd"][name]]}
            figure.add_scatter(
                x=[values[name]],
                y=[table["mean"][name]],
                error_y=spread,
                name=name,
                mode="markers",
                marker=style | {"size": 12},
            )
    return figure


def _learning_curves(record: DatasetRecord) -> go.Figure:
    metric = record.main_metric
    figure = _figure("epoch", f"valid {metric_names(record).get(metric, metric)}", tickformat="d")
    for model in record.models:
        style = _styles(record)[model.name]
        curves = {seed: run.epochs[metric] for seed, run in model.runs.items() if metric in run.epochs}
        for place, (seed, curve) in enumerate(curves.items()):
            values = curve.reset_index(drop=True).dropna()
            figure.add_scatter(
                x=(values.index + 1).tolist(),
                y=values.tolist(),
                name=model.name,
                legendgroup=model.name,
                showlegend=place == 0,
                mode="lines+markers",
                line={"color": style["color"], "width": 1.5},
                marker=style | {"size": 5},
                hovertemplate=f"seed {seed}, epoch %{{x}}: %{{y:.4f}}",
            )
    return figure


def _group_sizes(record: DatasetRecord, baseline: str) -> go.Figure:
    figure = _figure("group, the largest first", "users", dtick=1)
    if record.rows is None or record.main_metric not in record.rows.names:
        return figure
    styles = _styles(record)
    shown: set[str] = set()
    for (model, seed), groups in analysis.by_group(record, baseline).groupby(["model", "seed"], sort=False):
        sizes = groups["rows"].sort_values(ascending=False).tolist()
        figure.add_bar(
            x=list(range(1, len(sizes) + 1)),
            y=sizes,
            name=model,
            legendgroup=model,
            showlegend=model not in shown,
            marker={"color": styles[model]["color"]},
            hovertemplate=f"seed {seed}: %{{y:,}} users",
        )
        shown.add(model)
    return figure
