"""Metrics of users and items that the train part does not know."""

import numpy as np
import pytest
import torch

from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import run
from recbole_perpeft.training.rank_metrics import TargetRanks, metrics_by_slice


def test_each_target_is_in_one_slice():
    config = Config(
        "BPR", "ml-100k", config_dict={"topk": [2], "valid_metric": "MRR@2", "metrics": ["Hit", "MRR", "GiniIndex"]}
    )
    trained = HistoryIndex.from_pairs(np.array([1, 1, 2]), np.array([1, 2, 1]), 4)
    users, items, ranks = (torch.tensor(column) for column in ([1, 2, 1, 3, 3], [1, 2, 3, 1, 3], [1, 2, 3, 4, 1]))
    assert metrics_by_slice(config, trained, 4, TargetRanks(users, items, ranks)) == {
        "known": {"targets": 2, "hit@2": 1.0, "mrr@2": 0.75},
        "new item": {"targets": 1, "hit@2": 0.0, "mrr@2": 0.0},
        "new user": {"targets": 1, "hit@2": 0.0, "mrr@2": 0.0},
        "new user and item": {"targets": 1, "hit@2": 1.0, "mrr@2": 1.0},
    }


@pytest.mark.parametrize("split", [{"GT": 0.8}, {"LS": "valid_and_test"}])
def test_a_run_tells_slices_of_a_split_at_one_time(toy_settings, split):
    result = run("Pop", config_dict=toy_settings | {"eval_args": {"split": split}, "topk": [10]})
    if "LS" in split:
        assert "test_slices" not in result
    else:
        slices = result["test_slices"]
        mean = sum(each["targets"] * each["hit@10"] for each in slices.values())
        total = sum(each["targets"] for each in slices.values())
        assert mean / total == pytest.approx(result["test_result"]["hit@10"], abs=1e-5)
