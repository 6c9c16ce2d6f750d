"""Numbers of the report: quality, significance, cost, and quality in parts of the users and items."""

from __future__ import annotations

import numpy as np
import pandas as pd
from recbole.evaluator.register import metrics_dict
from sklearn.metrics import adjusted_rand_score

from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.compare.statistics import (
    detectable_difference,
    false_discovery,
    holm,
    interval_of_mean,
    paired_test,
    tpme,
)
from recbole_perpeft.training.rank_metrics import SLICES, slice_of

N_HISTORY_BINS = 4
# Shares of the catalogue, by interactions in the train part. The rest is the tail; items without any are cold.
HEAD_SHARE, TORSO_SHARE = 0.1, 0.4


def bigger_is_better(metric: str) -> bool:
    """Whether a metric of RecBole grows with quality."""
    return not metrics_dict[metric.split("@")[0].lower()].smaller


def quality(record: DatasetRecord) -> pd.DataFrame:
    """Test metrics.

    Returns:
        Columns model, seeds, metric, mean, sd (over seeds, n - 1; NaN with one seed).
    """
    rows = []
    for model in record.models:
        for metric in model.metrics:
            values = model.metrics[metric]
            rows.append((model.name, len(values), metric, values.mean(), values.std(ddof=1)))
    return pd.DataFrame(rows, columns=["model", "seeds", "metric", "mean", "sd"])


def intervals(record: DatasetRecord) -> pd.DataFrame:
    """Bootstrap intervals of each model's own metrics.

    Returns:
        Columns model, metric, mean, low and high (over users, each averaged over seeds and over his rows that all runs
        have; where users have no ranks, the mean is over runs and the ends are NaN), low_seeds and high_seeds (over
        seeds; NaN with one).
    """
    rows = []
    for model in record.models:
        for metric in model.metrics:
            values = model.metrics[metric].to_numpy()
            has_users = record.rows is not None and metric in record.rows.names
            of_users = record.ranked.of_users(model.name, metric) if has_users else np.empty(0)
            mean = of_users.mean() if len(of_users) else values.mean()
            rows.append((model.name, metric, mean, *interval_of_mean(of_users), *interval_of_mean(values)))
    return pd.DataFrame(rows, columns=["model", "metric", "mean", "low", "high", "low_seeds", "high_seeds"])


def significance(record: DatasetRecord, baseline: str) -> pd.DataFrame:
    """Differences from the baseline, tested over users.

    Holm's correction and that of the false discovery rate are for the number of models that are compared with the
    baseline, for each metric and test.

    Args:
        record: the runs.
        baseline: name of a model.

    Returns:
        Columns model, metric, difference, low and high (bootstrap interval of the difference over users), low_seeds
        and high_seeds (over seeds that both have; NaN with one), improvement (the difference as a share of the
        baseline's mean over the same users), detectable (least difference that so many users show, as such a share),
        p_t, p_wilcoxon, and both with the ending _holm and _fdr. Without ranks, or without the baseline, empty.
    """
    others = [model.name for model in record.models if model.name != baseline]
    if record.rows is None or record.model(baseline) is None or not others:
        return pd.DataFrame(columns=_SIGNIFICANCE)
    parts = []
    for metric in record.rows.names:
        of_baseline = record.rows.of_users(baseline, metric)
        tests = [_against(record, name, baseline, metric, of_baseline) for name in others]
        table = pd.DataFrame(tests)
        for test in ("p_t", "p_wilcoxon"):
            table[f"{test}_holm"], table[f"{test}_fdr"] = holm(table[test]), false_discovery(table[test])
        parts.append(table)
    return pd.concat(parts, ignore_index=True)[_SIGNIFICANCE]


_SIGNIFICANCE = [
    *("model", "metric", "difference", "low", "high", "low_seeds", "high_seeds", "improvement", "detectable"),
    *("p_t", "p_wilcoxon", "p_t_holm", "p_wilcoxon_holm", "p_t_fdr", "p_wilcoxon_fdr"),
]


def _against(
    record: DatasetRecord, name: str, baseline: str, metric: str, of_baseline: np.ndarray
) -> dict[str, str | float]:
    """A model's row of `significance`, without what depends on the other rows."""
    of_model = record.ranked.of_users(name, metric)
    differences, test = of_model - of_baseline, paired_test(of_model, of_baseline)
    low, high = interval_of_mean(differences)
    low_seeds, high_seeds = interval_of_mean(_differences_of_seeds(record, name, baseline, metric))
    mean = of_baseline.mean()
    return {
        **vars(test),
        **{"model": name, "metric": metric, "improvement": differences.mean() / mean if mean else np.nan},
        **{"low": low, "high": high, "low_seeds": low_seeds, "high_seeds": high_seeds},
        "detectable": detectable_difference(differences) / mean if mean else np.nan,
    }


def _differences_of_seeds(record: DatasetRecord, name: str, baseline: str, metric: str) -> np.ndarray:
    """A model's metric minus the baseline's, of each seed that both have: float64 [n_seeds]."""
    of_seeds = []
    for model in record.models:
        if model.name in (name, baseline):
            sign = 1 if model.name == name else -1
            of_seeds.append(sign * pd.Series(model.metrics[metric].to_numpy(), index=list(model.runs)))
    return pd.concat(of_seeds, axis=1).dropna().sum(axis=1).to_numpy()


def tuning(record: DatasetRecord) -> pd.DataFrame:
    """How settings were found: `model`, `trials`, `epochs`, `valid_score`, `settings`, `folder` of the search."""
    rows = [
        {
            "model": found.name,
            "trials": found.n_trials,
            "epochs": found.n_epochs,
            "valid_score": found.valid_score,
            "settings": ", ".join(f"{key}={value}" for key, value in found.chosen.items()),
            "folder": str(found.folder),
        }
        for found in record.plan.tunings
    ]
    return pd.DataFrame(rows)


def cost(record: DatasetRecord) -> pd.DataFrame:
    """What training takes, means over seeds.

    Returns:
        Columns model, epoch_seconds (median over epochs, training alone), epochs, memory_mb, gpu_memory_mb,
        trainable_parameters, parameters, tpme. TPME takes the memory of the GPU if all models ran on one.
    """
    rows = []
    for model in record.trained:
        memory, gpu_memory = model.memory_mb
        rows.append(
            {
                "model": model.name,
                "epoch_seconds": model.mean_of("median_epoch_seconds"),
                "epochs": model.mean_of("epochs"),
                "memory_mb": memory,
                "gpu_memory_mb": np.nan if gpu_memory is None else gpu_memory,
                "trainable_parameters": model.mean_of("trainable_parameters"),
                "parameters": model.mean_of("parameters"),
            }
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    on_gpu = table["gpu_memory_mb"].notna().all()
    memory = table["gpu_memory_mb" if on_gpu else "memory_mb"]
    return table.assign(tpme=tpme(table["epoch_seconds"], table["trainable_parameters"], memory))


def by_history(record: DatasetRecord) -> pd.DataFrame:
    """The main metric by the length of the user's history before the test item, in bins of about as many users.

    Returns:
        Columns model, part, rows, value.
    """
    lengths = record.plan.description.history_length[record.ranked.users]
    bins = pd.qcut(lengths, N_HISTORY_BINS, labels=False, duplicates="drop") if np.ptp(lengths) else 0 * lengths
    labels = {}
    for number in np.unique(bins):
        inside = lengths[bins == number]
        labels[number] = f"{inside.min()}–{inside.max()} items" if np.ptp(inside) else f"{inside.min()} items"
    return _by_part(record, bins, labels)


def by_popularity(record: DatasetRecord) -> pd.DataFrame:
    """The main metric by the target's number of interactions in the train part: head, torso, tail, cold.

    Returns:
        Columns model, part, rows, value.
    """
    counts = record.plan.description.train_count
    borders = popularity_borders(counts)
    of_rows = counts[record.ranked.items]
    parts = np.select([of_rows >= borders[0], of_rows >= borders[1], of_rows > 0], [0, 1, 2], default=3)
    labels = {0: f"head (≥ {borders[0]})", 1: f"torso (≥ {borders[1]})", 2: "tail (≥ 1)", 3: "cold (0)"}
    return _by_part(record, parts, labels)


def by_slice(record: DatasetRecord) -> pd.DataFrame:
    """All metrics of ranks by whether the train part knows the user and the target.

    Returns:
        Columns model, part, rows, metric, value; empty where it knows all users.
    """
    description, ranked = record.plan.description, record.ranked
    parts = slice_of(description.known_user[ranked.users], description.train_count[ranked.items] > 0)
    if description.known_user[ranked.users].all():
        return pd.DataFrame(columns=["model", "part", "rows", "metric", "value"])
    labels = dict(enumerate(SLICES))
    tables = [_by_part(record, parts, labels, name).assign(metric=name) for name in ranked.names]
    return pd.concat(tables, ignore_index=True)[["model", "part", "rows", "metric", "value"]]


def popularity_borders(counts: np.ndarray) -> tuple[int, int]:
    """Least number of train interactions of head and of torso items; items with equal numbers stay together.

    Args:
        counts: int64 [n_items].
    """
    sold = np.sort(counts[counts > 0])[::-1]
    if not len(sold):
        return 1, 1
    last = [max(round(share * len(sold)), 1) - 1 for share in (HEAD_SHARE, HEAD_SHARE + TORSO_SHARE)]
    return int(sold[last[0]]), int(sold[last[1]])


def _by_part(
    record: DatasetRecord, parts: np.ndarray, labels: dict[int, str], metric: str | None = None
) -> pd.DataFrame:
    column = record.ranked.names.index(metric or record.main_metric)
    rows = []
    for number, label in labels.items():
        inside = parts == number
        if inside.any():
            for model, values in record.ranked.values.items():
                rows.append((model, label, int(inside.sum()), values[inside, column].mean()))
    return pd.DataFrame(rows, columns=["model", "part", "rows", "value"])


def by_group(record: DatasetRecord, baseline: str) -> pd.DataFrame:
    """The main metric in the user groups of models that have several, beside the baseline with the same seed.

    Returns:
        Columns model, seed, group, rows, value, baseline, low and high (bootstrap interval of the gain over the
        baseline, over the group's rows), rand_index (of the run's groups and the true ones; NaN if they are not
        known).
    """
    truth = record.plan.description.true_group
    parts = []
    for (model, seed), groups in record.ranked.groups.items():
        is_in_one = groups >= 0  # users without train items are in none
        if len(np.unique(groups[is_in_one])) < 2:
            continue
        nowhere = np.full(len(groups), np.nan)
        table = pd.DataFrame(
            {
                "group": groups,
                "value": record.ranked.by_seed[model, seed],
                "baseline": record.ranked.by_seed.get((baseline, seed), nowhere),
            }
        )
        table = table[is_in_one]
        gains = (table["value"] - table["baseline"]).groupby(table["group"])
        ends = np.array([interval_of_mean(gain.dropna().to_numpy()) for _, gain in gains])
        table = table.groupby("group", as_index=False)
        agreement = np.nan
        if truth is not None:
            agreement = adjusted_rand_score(truth[record.ranked.users[is_in_one]], groups[is_in_one])
        sizes = table.size()["size"]
        numbers = {"rows": sizes, "low": ends[:, 0], "high": ends[:, 1], "rand_index": agreement}
        parts.append(table.mean().assign(model=model, seed=seed, **numbers))
    columns = ["model", "seed", "group", "rows", "value", "baseline", "low", "high", "rand_index"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
