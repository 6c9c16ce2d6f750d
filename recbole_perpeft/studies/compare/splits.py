"""One comparison under several splits, side by side: does the order of the models stay?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from scipy import stats

from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.report.tables import Cell, Table, places


def kendall(records: Sequence[DatasetRecord]) -> pd.DataFrame:
    """Agreement of the models' order between each two splits of a data set.

    Returns:
        Columns dataset, metric, split, other, models, tau (Kendall's tau-b of the means over seeds; 1 for the same
        order, -1 for the reverse, NaN for fewer than two models).
    """
    rows = []
    for one, other in combinations([record for record in records if record.plan.split], 2):
        if one.plan.dataset != other.plan.dataset:
            continue
        means = [_means(each) for each in (one, other)]
        models = means[0].columns.intersection(means[1].columns)
        for metric in means[0].index.intersection(means[1].index):
            values = [table.loc[metric, models].to_numpy() for table in means]
            tau = stats.kendalltau(*values).statistic if len(models) > 1 else float("nan")
            rows.append((one.plan.dataset, metric, one.plan.split, other.plan.split, len(models), tau))
    return pd.DataFrame(rows, columns=["dataset", "metric", "split", "other", "models", "tau"])


def _means(record: DatasetRecord) -> pd.DataFrame:
    """A row a metric, a column a model."""
    return analysis.quality(record).pivot(index="metric", columns="model", values="mean")


def side_by_side(records: Sequence[DatasetRecord]) -> list[Table]:
    """A table a data set: the metric that chooses epochs under each split, and how far the orders agree."""
    agreement = kendall(records)
    made = []
    for dataset in dict.fromkeys(record.plan.dataset for record in records if record.plan.split):
        of_it = [record for record in records if record.plan.dataset == dataset and record.models]
        metric = of_it[0].main_metric if of_it else ""
        values = pd.DataFrame({str(record.plan.split): _means(record).loc[metric] for record in of_it})
        names = list(dict.fromkeys(model.name for record in of_it for model in record.models))
        values = values.reindex(names)
        columns = [[Cell(name) for name in names]]
        for split in values:
            marks = places(values[split], analysis.bigger_is_better(metric))
            texts = ["" if pd.isna(value) else f"{value:.4f}" for value in values[split]]
            columns.append([Cell(text, mark) for text, mark in zip(texts, marks, strict=True)])
        taus = agreement[(agreement["dataset"] == dataset) & (agreement["metric"] == metric)].dropna(subset="tau")
        note = f"{metric}, mean over seeds"
        if len(taus):
            note += ". Kendall's tau of the models' order: " + "; ".join(
                f"{row.split} and {row.other} {row.tau:.2f} ({row.models} models)" for row in taus.itertuples()
            )
        made.append(Table(f"Splits of {dataset}", ["model", *values], list(zip(*columns, strict=True)), note + "."))
    return [table for table in made if len(table.header) > 2]
