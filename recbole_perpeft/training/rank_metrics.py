"""Metrics that follow from the ranks of targets: of all, of each, and of users and items that the train part lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex

_NAME = re.compile(r"(?P<metric>[a-z]+)@(?P<cut>\d+)")
SLICES = ("known", "new item", "new user", "new user and item")


@dataclass(frozen=True)
class TargetRanks:
    """Rank of every target of an evaluation, in the order of the evaluation; internal ids."""

    users: Tensor  # [n]
    items: Tensor  # [n]
    ranks: Tensor  # [n]


def mean_of_ranks(config, name: str, ranks: Tensor) -> float:
    """A metric of RecBole of some targets, as an evaluation rounds it; of metrics that a project registers too.

    Args:
        config: RecBole configuration.
        name: Such as `ndcg@20`.
        ranks: int64 [n], 1 for the best.

    Raises:
        PerPEFTError: the metric is not one of ranks alone.
    """
    metric = metrics_dict[name.partition("@")[0]](config)
    if list(metric.metric_need) != ["rec.topk"]:
        raise PerPEFTError(
            f"valid_metric: {name} is no metric of ranks alone; choose Hit, NDCG, MRR, Recall, Precision or MAP"
        )
    collected = DataStruct()
    collected.set("rec.topk", hits_of_ranks(ranks, max(config["topk"])))
    return float(metric.calculate_metric(collected)[name])


def hits_of_ranks(ranks: Tensor, n_places: int) -> Tensor:
    """[n, K + 1] as RecBole's metrics take it: whether places 1..K are positives, and the number of these, 1."""
    places = torch.arange(1, n_places + 1, device=ranks.device)
    hits = (ranks.unsqueeze(1) == places).int()
    return torch.cat([hits, torch.ones_like(hits[:, :1])], dim=1)


def _hit(ranks: np.ndarray) -> np.ndarray:
    return np.ones_like(ranks, dtype=np.float64)


def _ndcg(ranks: np.ndarray) -> np.ndarray:
    return 1 / np.log2(ranks + 1.0)


def _mrr(ranks: np.ndarray) -> np.ndarray:
    return 1.0 / ranks


# With one target a row; precision is divided by the cut as well.
_OF_RANK: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"hit": _hit, "recall": _hit, "precision": _hit, "ndcg": _ndcg, "mrr": _mrr, "map": _mrr}
)


def is_rank_metric(name: str) -> bool:
    """Whether a metric such as `ndcg@20` follows from the rank of the target."""
    found = _NAME.fullmatch(name.lower())
    return found is not None and found["metric"] in _OF_RANK


def metric_of_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """A metric of each of several rows with one target each, as RecBole defines it.

    Args:
        name: `hit@k`, `recall@k`, `precision@k`, `ndcg@k`, `mrr@k` or `map@k`.
        ranks: int [n], 1 for the best.

    Returns:
        float64 [n].

    Raises:
        KeyError: the metric does not follow from the rank.
    """
    if not is_rank_metric(name):
        raise KeyError(name)
    metric, cut = name.lower().split("@")
    values = np.where(ranks <= int(cut), _OF_RANK[metric](ranks), 0.0)
    return values / int(cut) if metric == "precision" else values


def slice_of(known_user: np.ndarray, known_item: np.ndarray) -> np.ndarray:
    """Place in `SLICES` of each row, int64 [n].

    Args:
        known_user: whether the row's user has train interactions, bool [n].
        known_item: whether the row's target has, bool [n].
    """
    return 2 * ~known_user + ~known_item


def metrics_by_slice(config, trained: HistoryIndex, n_items: int, ranks: TargetRanks) -> dict[str, dict[str, Any]]:
    """How many targets each slice has, and its metrics of ranks.

    Args:
        config: RecBole configuration.
        trained: interactions of the train part.
        n_items: number of item ids.
        ranks: of the test part.

    Returns:
        By slice `targets` and metrics such as `ndcg@10`; slices without targets are left out.
    """
    items_known = np.bincount(trained.items, minlength=n_items) > 0
    slices = slice_of(trained.lengths[ranks.users.numpy()] > 0, items_known[ranks.items.numpy()])
    of_ranks = [name.lower() for name in config["metrics"] if metrics_dict[name.lower()].metric_need == ["rec.topk"]]
    names = [f"{name}@{cut}" for name in of_ranks for cut in config["topk"]]
    found: dict[str, dict[str, Any]] = {}
    for place, title in enumerate(SLICES):
        inside = ranks.ranks[torch.from_numpy(slices == place)]
        if len(inside):
            found[title] = {"targets": len(inside)} | {name: mean_of_ranks(config, name, inside) for name in names}
    return found
