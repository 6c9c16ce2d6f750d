"""The tables and plots of a report, from the numbers of `analysis`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from recbole_perpeft.core.protocol import DEFAULT_TARGET
from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.beyond import beyond_by_group_table, beyond_table
from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.compare.stability import stability_table
from recbole_perpeft.studies.compare.statistics import TPME_WEIGHTS
from recbole_perpeft.studies.report.escape import in_html
from recbole_perpeft.studies.report.page import COLOURS, add_curve, new_figure
from recbole_perpeft.studies.report.tables import Cell, Table, places

_LEVEL = 0.05
_SMALL_P = 0.001
# Markers tell models apart without colours.
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "pentagon", "hexagram")


def tables(record: DatasetRecord, baseline: str) -> list[Table]:
    """All tables of one data set, without those that have nothing to show."""
    made = [_failures(record), _tuning(record)]
    if record.models:
        made += [_quality(record), _significance(record, baseline), _cost(record)]
        made += [beyond_table(record), beyond_by_group_table(record)]
    if record.has_parts:
        made += [
            _parts(record, "By length of the user's history", analysis.by_history(record), _HISTORY_NOTE),
            _parts(record, "By popularity of the target", analysis.by_popularity(record), _POPULARITY_NOTE),
            _slices(record),
            _groups(record, baseline),
            stability_table(record),
        ]
    return [table for table in made if table.rows]


_HISTORY_NOTE = "Number of a user's interactions before the test item; bins hold about as many users each."
_SLICES_NOTE = (
    "Test targets whose user or item has no interaction in the train part, beside the others; all metrics: slices.csv."
)
_TUNING_NOTE = (
    "By a search on the valid items with the first seed, as many trials for each model unless its space has fewer "
    "points; models that are not here have the settings of their entry or of the package."
)
_POPULARITY_NOTE = (
    "Interactions of the test item in the train part. Head: the most popular tenth of the items sold; torso: the next "
    "four tenths; items with as many interactions stay together. Cold: never sold in the train part."
)


def protocol_sentence(protocol: Mapping[str, Any]) -> str:
    """The protocol in one sentence."""
    arguments = protocol["eval_args"]
    split = ", ".join(f"{kind} {value}" for kind, value in arguments["split"].items())
    if "GT" in arguments["split"]:
        split += f" (all users at one time; {arguments.get('target') or DEFAULT_TARGET} of what is after it)"
    parts = f"Split {split} in the order {arguments['order']}"
    if given := protocol.get("benchmark_filename"):
        parts = f"Parts as they are given ({', '.join(given)})"
    mode = arguments["mode"]
    mode = mode["test"] if isinstance(mode, dict) else mode
    return (
        f"{parts}; candidates: {mode}, mask_history "
        f"{protocol['mask_history']}; the best epoch and early stopping ({protocol['stopping_step']} evaluations) by "
        f"{protocol['valid_metric']} on the valid items; the same for all models."
    )


def metric_names(record: DatasetRecord) -> dict[str, str]:
    """Metrics in the spelling of the settings, by the spelling of results."""
    protocol = record.plan.protocol
    names = [f"{metric}@{cut}" for metric in protocol["metrics"] for cut in protocol["topk"]] + protocol["metrics"]
    return {name.lower(): name for name in names}


def number(value: float, digits: int = 4) -> str:
    """A number with decimals; empty for NaN."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _quality(record: DatasetRecord) -> Table:
    table = analysis.quality(record)
    names = metric_names(record)
    metrics = list(dict.fromkeys(table["metric"]))
    mean, sd = (table.pivot(index="model", columns="metric", values=value) for value in ("mean", "sd"))
    models = [model.name for model in record.models]
    columns = [[Cell(name) for name in models], [Cell(str(len(model.runs))) for model in record.models]]
    for metric in metrics:
        values = mean.loc[models, metric]
        marks = places(values, analysis.bigger_is_better(metric))
        texts = [_with_sd(value, sd.loc[model, metric]) for model, value in values.items()]
        columns.append([Cell(text, mark) for text, mark in zip(texts, marks, strict=True)])
    header = ["model", "seeds", *(names.get(metric, metric) for metric in metrics)]
    note = "Test metrics, mean ± standard deviation over seeds; the best of a column is marked, and the second best."
    return Table("Quality", header, list(zip(*columns, strict=True)), note)


def _tuning(record: DatasetRecord) -> Table:
    names = ("model", "trials", "epochs", "valid_score", "settings")
    rows = [[Cell(str(row[name])) for name in names] for row in analysis.tuning(record).to_dict("records")]
    header = [
        "model",
        "trials",
        "epochs of all trials",
        f"best valid {record.plan.protocol['valid_metric']}",
        "chosen",
    ]
    return Table("How settings were chosen", header, rows, _TUNING_NOTE)


def _with_sd(mean: float, sd: float) -> str:
    return number(mean) if np.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def _significance(record: DatasetRecord, baseline: str) -> Table:
    table = analysis.significance(record, baseline)
    names = metric_names(record)
    shown = table[table["metric"] == record.main_metric]
    rows = [
        [
            Cell(row.model),
            Cell(names.get(row.metric, row.metric)),
            Cell("" if np.isnan(row.improvement) else f"{row.improvement:+.1%}"),
            Cell("" if np.isnan(row.low) else f"{row.low:+.4f} … {row.high:+.4f}"),
            Cell("" if np.isnan(row.detectable) else f"{row.detectable:.1%}"),
            *(Cell(_p(p)) for p in (row.p_t, row.p_t_holm, row.p_t_fdr)),
            *(Cell(_p(p)) for p in (row.p_wilcoxon, row.p_wilcoxon_holm, row.p_wilcoxon_fdr)),
            Cell("yes" if max(row.p_t_holm, row.p_wilcoxon_holm) < _LEVEL else "no"),
        ]
        for row in shown.itertuples()
    ]
    tests = [f"p ({test}{kind})" for test in ("t", "Wilcoxon") for kind in ("", ", Holm", ", FDR")]
    header = ["model", "metric", "improvement", "95 % interval", "detectable", *tests]
    n_users = 0 if record.rows is None else len(np.unique(record.rows.users))
    note = (
        f"Paired tests over {n_users:,} users, each user's metric averaged over seeds; Holm's correction and that of "
        f"the false discovery rate for {len(rows)} comparisons; significant: both p-values by Holm below {_LEVEL}. "
        "Interval of the difference: bootstrap over users. "
    )
    if shown["detectable"].notna().any():
        note += (
            f"With {n_users:,} users, differences below {shown['detectable'].min():.1%} of {baseline} cannot be seen "
            "(detectable: found with power 0.8 at the level 0.05, from the deviation of the paired differences). "
        )
    note += "Other metrics, and intervals over seeds: significance.csv."
    if record.rows is not None and record.rows.n_left_out:
        note += f" {record.rows.n_left_out:,} test rows that not all models have are left out."
    return Table(f"Against {baseline}", [*header, "significant"], rows, note)


def _p(value: float) -> str:
    return f"{value:.1e}" if value < _SMALL_P else f"{value:.3f}"


def _cost(record: DatasetRecord) -> Table:
    table = analysis.cost(record)
    shown = {
        "seconds an epoch": ("epoch_seconds", "{:.2f}"),
        "epochs": ("epochs", "{:.1f}"),
        "peak memory (MB)": ("memory_mb", "{:,.0f}"),
        "peak GPU memory (MB)": ("gpu_memory_mb", "{:,.0f}"),
        "trainable parameters": ("trainable_parameters", "{:,.0f}"),
        "parameters": ("parameters", "{:,.0f}"),
        "TPME (%)": ("tpme", "{:.2%}"),
    }
    shown = {title: how for title, how in shown.items() if table[how[0]].notna().any()}
    columns = [[Cell(name) for name in table["model"]]]
    for name, form in shown.values():
        marks = [0] * len(table) if name == "epochs" else places(table[name], bigger=False)
        texts = ("" if np.isnan(value) else form.format(value).rstrip("%") for value in table[name])
        columns.append([Cell(text, mark) for text, mark in zip(texts, marks, strict=True)])
    weights = ", ".join(f"{weight:.2f}" for weight in TPME_WEIGHTS)
    note = (
        "Means over seeds. Seconds: median over the epochs of a run, training alone. TPME (lower is better) weighs "
        f"time, trainable parameters and peak memory of these {len(table)} models by {weights}; another set of models "
        f"has other scores. {_machine(record)}"
    )
    return Table("Cost", ["model", *shown], list(zip(*columns, strict=True)), note)


def _machine(record: DatasetRecord) -> str:
    machines = {run.machine for model in record.trained for run in model.runs.values()}
    warning = " Times of different machines do not compare." if len(machines) > 1 else ""
    return f"Measured on {'; '.join(sorted(machines))}.{warning}"


def _parts(record: DatasetRecord, title: str, table: pd.DataFrame, note: str) -> Table:
    parts = table.drop_duplicates("part")
    columns = [[Cell(name) for name in record.ranked.values]]
    for part in parts["part"]:
        values = table.loc[table["part"] == part, "value"]
        marks = places(values)
        columns.append([Cell(number(value), mark) for value, mark in zip(values, marks, strict=True)])
    header = ["model", *(f"{part}, n = {rows:,}" for part, rows in zip(parts["part"], parts["rows"], strict=True))]
    metric = metric_names(record)[record.main_metric]
    return Table(title, header, list(zip(*columns, strict=True)), f"{metric}, mean over seeds. {note}")


def _slices(record: DatasetRecord) -> Table:
    table = analysis.by_slice(record)
    table = table[table["metric"] == record.main_metric]
    if table.empty:
        return Table("New users and items", [], [])
    return _parts(record, "New users and items", table, _SLICES_NOTE)


def _groups(record: DatasetRecord, baseline: str) -> Table:
    table = analysis.by_group(record, baseline)
    table = table[table["seed"] == table.groupby("model")["seed"].transform("min")]
    with_truth = table["rand_index"].notna().any()
    rows = []
    for row in table.itertuples():
        gain = row.value / row.baseline - 1 if row.baseline > 0 else np.nan
        cells = [row.model, f"{row.group}", f"{row.rows:,}", number(row.value), number(row.baseline)]
        cells += ["" if np.isnan(gain) else f"{gain:+.1%}"]
        cells += [
            "" if np.isnan(row.low) else f"{row.low:+.4f} … {row.high:+.4f}",
            *([number(row.rand_index)] if with_truth else []),
        ]
        rows.append([Cell(text) for text in cells])
    metric = metric_names(record)[record.main_metric]
    header = ["model", "group", "users", metric, f"{metric} of {baseline}", "improvement", "95 % interval"]
    note = (
        "Groups of a model's run with its first seed, and the baseline's with the same seed; all seeds: groups.csv. "
        "Interval of the difference: bootstrap over the group's users."
    )
    if with_truth:
        header.append("Rand index")
        note += " Rand index: agreement of the run's groups with the true ones, adjusted for chance, 1 for the same."
    return Table("By user group", header, rows, note + _kept_global_modules(record))


def _kept_global_modules(record: DatasetRecord) -> str:
    """Which groups have the global module still, where groups choose (`shared_in_groups: freeze`)."""
    sentences = []
    for model in record.models:
        epochs = model.runs[min(model.runs)].result.get("group_best_epochs")
        if epochs is not None:
            fallen = [str(group) for group, epoch in enumerate(epochs) if epoch is None]
            sentences.append(f" Groups of {model.name} that keep the global module: {', '.join(fallen) or 'none'}.")
    return "".join(sentences)


def _failures(record: DatasetRecord) -> Table:
    rows = [
        [Cell(failure.job.spec.name), Cell(str(failure.job.seed)), Cell(failure.error or "")]
        for failure in record.failures
    ]
    note = "The messages of a failed run are beside its run folder, in .error.txt. The same command tries them again."
    return Table("Runs that failed", ["model", "seed", "error"], rows, note)


def plots(record: DatasetRecord, baseline: str) -> dict[str, Figure]:
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
    looks = zip(names, cycle(COLOURS), cycle(_SYMBOLS), strict=False)
    return {name: {"color": colour, "symbol": symbol} for name, colour, symbol in looks}


def _quality_against(record: DatasetRecord, column: str, title: str) -> Figure:
    metric = record.main_metric
    figure = new_figure(title, f"test {metric_names(record).get(metric, metric)}", type="log")
    if not record.models or any(metric not in model.metrics for model in record.models):
        return figure
    values = analysis.cost(record).set_index("model")[column]
    table = analysis.quality(record)
    table = table[table["metric"] == metric].set_index("model")
    for name, style in _styles(record).items():
        if values.get(name, 0) > 0:  # zero has no place on a logarithmic axis
            spread = {"type": "data", "array": [0 if table["sd"].isna()[name] else table["sd"][name]]}
            figure.add_scatter(
                x=[values[name]],
                y=[table["mean"][name]],
                error_y=spread,
                name=in_html(name),
                mode="markers",
                marker=style | {"size": 12},
            )
    return figure


def _learning_curves(record: DatasetRecord) -> Figure:
    metric = record.main_metric
    figure = new_figure("epoch", f"valid {metric_names(record).get(metric, metric)}", tickformat="d")
    for model in record.trained:
        style = _styles(record)[model.name]
        curves = {seed: run.epochs[metric] for seed, run in model.runs.items() if metric in run.epochs}
        for place, (seed, curve) in enumerate(curves.items()):
            values = {epoch: value for epoch, value in enumerate(curve, start=1) if not np.isnan(value)}
            add_curve(
                figure,
                values,
                model.name,
                style["color"],
                marker=style,
                legendgroup=model.name,
                showlegend=place == 0,
                hovertemplate=f"seed {seed}, epoch %{{x}}: %{{y:.4f}}",
            )
    return figure


def _group_sizes(record: DatasetRecord, baseline: str) -> Figure:
    figure = new_figure("group, the largest first", "users", dtick=1)
    if not record.has_parts:
        return figure
    styles = _styles(record)
    shown: set[str] = set()
    for (model, seed), groups in analysis.by_group(record, baseline).groupby(["model", "seed"], sort=False):
        sizes = groups["rows"].sort_values(ascending=False).tolist()
        figure.add_bar(
            x=list(range(1, len(sizes) + 1)),
            y=sizes,
            name=in_html(model),
            legendgroup=model,
            showlegend=model not in shown,
            marker={"color": styles[model]["color"]},
            hovertemplate=f"seed {seed}: %{{y:,}} users",
        )
        shown.add(model)
    return figure
