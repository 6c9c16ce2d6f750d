"""Test metrics of users and items that the train part does not know, beside those that it knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.evaluator.register import metrics_dict

from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.training.ranks import TargetRanks, mean_of_ranks

SLICES = ("known", "new item", "new user", "new user and item")


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
