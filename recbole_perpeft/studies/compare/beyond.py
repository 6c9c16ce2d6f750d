"""What the models' test lists are like beyond accuracy, in all and by user group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.report.tables import Cell, Table
from recbole_perpeft.training.list_figures import NAMES

_FORMS = {"coverage": "{:.1%}", "popularity": "{:.1f}", "novelty": "{:.2f}"}
_NOTE = (
    "Test lists of {cut} items. Coverage: share of the catalogue that is on some list. Gini: 0 if all items are shown "
    "equally often, 1 if one alone is. Popularity: mean train interactions of a place. Novelty: mean information of a "
    "place in bits, by the items' shares of the train interactions. {diversity}Unexpectedness: share of places whose "
    "item is not among the {cut} most popular candidates of the row. Serendipity: share of test rows whose target is "
    "such an item. None of them is good by itself: read them beside quality. Other cut-offs: beyond.csv."
)
_DIVERSITY = "Diversity: mean of 1 - cosine of two items of a list, by the untouched encoder {encoder}. "
_GROUP_NOTE = (
    "Groups of the runs with the first seed, test lists of {cut} items; what the figures are is told above. Fewer "
    "lists cover less: coverage and Gini compare groups of like size. All seeds: beyond_groups.csv."
)


def beyond(record: DatasetRecord) -> pd.DataFrame:
    """Figures of the test lists of all users.

    Returns:
        Columns model, seeds, figure (such as `coverage@10`), mean, sd (over seeds, n - 1; NaN with one); empty where
        candidates were drawn. Diversity counts where the encoder is that of the first run that has one.
    """
    rows = [
        {"model": model, "seed": seed, "figure": name, "value": value}
        for model, seed, result in _results(record)
        for name, value in result.get("test_lists", {}).items()
    ]
    columns = ["model", "seeds", "figure", "mean", "sd"]
    if not rows:
        return pd.DataFrame(columns=columns)
    by_figure = pd.DataFrame(rows).groupby(["model", "figure"], sort=False)["value"]
    return by_figure.agg(seeds="size", mean="mean", sd=lambda values: values.std(ddof=1)).reset_index()[columns]


def beyond_by_group(record: DatasetRecord) -> pd.DataFrame:
    """Figures of the test lists of each user group.

    Returns:
        Columns model, seed, group, lists, and each figure; empty without models with groups.
    """
    rows = [
        {"model": model, "seed": seed} | group
        for model, seed, result in _results(record)
        for group in result.get("test_lists_by_group", ())
    ]
    return pd.DataFrame(rows, columns=None if rows else ["model", "seed", "group", "lists"])


def _results(record: DatasetRecord) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    encoder = _encoder(record)
    for model in record.trained:
        for seed, run in model.runs.items():
            result = dict(run.result)
            if result.get("diversity_encoder") != encoder:
                result["test_lists"] = _without_diversity(result.get("test_lists", {}))
                result["test_lists_by_group"] = [*map(_without_diversity, result.get("test_lists_by_group", ()))]
            yield model.name, seed, result


def _encoder(record: DatasetRecord) -> Any:
    """The encoder of diversity of the first run that has one."""
    named = (run.result.get("diversity_encoder") for model in record.trained for run in model.runs.values())
    return next((encoder for encoder in named if encoder is not None), None)


def _without_diversity(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not name.startswith("diversity@")}


def _cut(record: DatasetRecord) -> str:
    """The cut-off of the tables: that of the metric that chooses epochs, or else the longest."""
    return record.main_metric.partition("@")[2] or str(max(record.plan.protocol["topk"]))


def beyond_table(record: DatasetRecord) -> Table:
    """`beyond` at one cut-off as a table, without columns that have nothing to show."""
    cut, table = _cut(record), beyond(record)
    means, sds = (table.pivot(index="model", columns="figure", values=value) for value in ("mean", "sd"))
    names = [name for name in NAMES if f"{name}@{cut}" in means]
    if not names:
        return Table("Beyond accuracy", [], [])
    models = [model.name for model in record.trained if model.name in means.index]
    columns = [[Cell(model) for model in models]]
    for name in names:
        values, spread = (of.loc[models, f"{name}@{cut}"] for of in (means, sds))
        columns.append([Cell(_text(name, value, sd)) for value, sd in zip(values, spread, strict=True)])
    encoder = _encoder(record)
    shown = encoder if isinstance(encoder, str) else json.dumps(encoder)
    diversity = _DIVERSITY.format(encoder=shown) if "diversity" in names else ""
    note = _NOTE.format(cut=cut, diversity=diversity)
    return Table("Beyond accuracy", ["model", *names], list(zip(*columns, strict=True)), note)


def beyond_by_group_table(record: DatasetRecord) -> Table:
    """`beyond_by_group` at one cut-off as a table, for the first seed of each model."""
    cut, table = _cut(record), beyond_by_group(record)
    names = [name for name in NAMES if f"{name}@{cut}" in table]
    if not names:
        return Table("Beyond accuracy by user group", [], [])
    table = table[table["seed"] == table.groupby("model")["seed"].transform("min")]
    rows = [
        [
            *(Cell(row["model"]), Cell(str(row["group"])), Cell(f"{row['lists']:,}")),
            *(Cell(_text(name, row[f"{name}@{cut}"])) for name in names),
        ]
        for row in table.to_dict("records")
    ]
    header = ["model", "group", "lists", *names]
    return Table("Beyond accuracy by user group", header, rows, _GROUP_NOTE.format(cut=cut))


def _text(name: str, value: float, sd: float = np.nan) -> str:
    form = _FORMS.get(name, "{:.4f}")
    return " ± ".join(form.format(number) for number in (value, sd) if not np.isnan(number))
