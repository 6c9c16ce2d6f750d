import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator

from recbole_perpeft.core import compat
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs.config import Config
from recbole_perpeft.training.collector import RankCollector
from recbole_perpeft.training.ranks import target_ranks

compat.apply()
RANKING = ["Recall", "Precision", "Hit", "MRR", "NDCG", "MAP"]
OTHERS = ["ItemCoverage", "GiniIndex", "AveragePopularity", "ShannonEntropy", "TailPercentage", "GAUC"]


class _TrainData:
    """What the collector reads of a train loader."""

    def __init__(self, n_items):
        self.dataset = self
        self.item_counter = {item: item for item in range(1, n_items)}
        self.user_counter = {1: 3}
        self.n_items = n_items

    def num(self, field):
        return self.n_items


def _config(metrics, topk=(2, 5)):
    settings = {"metrics": metrics, "topk": list(topk), "valid_metric": f"{metrics[0]}@{topk[0]}", "use_gpu": False}
    return Config("SASRec", "ml-100k", config_dict=settings)


def _evaluate(collector, config, n_items, batches):
    collector.data_collect(_TrainData(n_items))
    for scores, positive_u, positive_i in batches:
        rows = Interaction({"user_id": torch.arange(1, len(scores) + 1)})
        collector.eval_batch_collect(scores, rows, positive_u, positive_i)
    return Evaluator(config).evaluate(collector.get_data_struct())


def _scores(rng, n_rows, n_items):
    """Scores without ties; item 0 and some others are no candidates."""
    scores = torch.from_numpy(rng.permutation(n_rows * n_items).reshape(n_rows, n_items).astype(np.float32))
    scores[:, 0] = -torch.inf
    return scores


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n_rows=st.integers(1, 8), n_items=st.integers(7, 20), n_batches=st.integers(1, 3))
def test_metrics_equal_those_of_recbole_without_ties(seed, n_rows, n_items, n_batches):
    rng = np.random.default_rng(seed)
    config = _config(RANKING)
    batches = [
        (_scores(rng, n_rows, n_items), torch.arange(n_rows), torch.from_numpy(rng.integers(1, n_items, n_rows)))
        for _ in range(n_batches)
    ]
    ours = _evaluate(RankCollector(config), config, n_items, batches)
    assert ours == _evaluate(Collector(config), config, n_items, batches)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n_rows=st.integers(1, 8), n_items=st.integers(7, 20))
def test_rows_with_several_positives_and_all_other_metrics_equal_recbole(seed, n_rows, n_items):
    rng = np.random.default_rng(seed)
    config = _config(RANKING + OTHERS)
    positives = [rng.choice(np.arange(1, n_items), rng.integers(1, 4), replace=False) for _ in range(n_rows)]
    positive_u = torch.from_numpy(np.repeat(np.arange(n_rows), [len(row) for row in positives]))
    batches = [(_scores(rng, n_rows, n_items), positive_u, torch.from_numpy(np.concatenate(positives)))] * 2
    ours = _evaluate(RankCollector(config), config, n_items, batches)
    assert ours == _evaluate(Collector(config), config, n_items, batches)


def test_value_metrics_equal_recbole():
    config = Config("DeepFM", "ml-100k", config_dict={"use_gpu": False})
    scores, labels = torch.rand(20), (torch.arange(20) % 3 == 0).float()
    results = []
    for collector in (RankCollector(config), Collector(config)):
        collector.eval_batch_collect(scores, Interaction({"label": labels}), None, None)
        results.append(Evaluator(config).evaluate(collector.get_data_struct()))
    assert results[0] == results[1]


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(0, 5))
def test_ranks_by_definition_with_ties(rows, target):
    scores = torch.tensor(rows, dtype=torch.float32)
    ranks = target_ranks(scores, torch.full((len(rows),), target))
    for row, rank in zip(rows, ranks.tolist(), strict=True):
        better = sum(score > row[target] for score in row)
        equal = sum(score == row[target] for score in row)
        assert rank == 1 + better + (equal - 1) // 2


def test_a_model_that_scores_everything_alike_ranks_in_the_middle():
    assert target_ranks(torch.zeros(1, 101), torch.tensor([7])).item() == 51


def test_a_masked_target_is_last_and_nan_of_others_is_worst():
    scores = torch.tensor([[0.0, -torch.inf, 2.0], [torch.nan, 1.0, 2.0]])
    assert target_ranks(scores, torch.tensor([1, 1])).tolist() == [3, 2]


def test_a_nan_target_is_an_error():
    with pytest.raises(PerPEFTError, match="1 of 2 targets as NaN"):
        target_ranks(torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))


def test_ranks_of_all_users_are_kept_and_evaluations_do_not_mix():
    config = _config(["Hit"])
    collector = RankCollector(config)
    first = (torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.5, 0.1]]), torch.tensor([0]), torch.tensor([2]))
    second = (torch.tensor([[0.0, 3.0, 4.0, 2.0, 0.5, 0.1]]), torch.tensor([0]), torch.tensor([2]))
    assert collector.target_ranks is None
    _evaluate(collector, config, 6, [first, second])
    assert collector.target_ranks.ranks.tolist() == [3, 1]
    assert collector.target_ranks.items.tolist() == [2, 2]
    _evaluate(collector, config, 6, [second])
    assert collector.target_ranks.ranks.tolist() == [1]


@given(seed=st.integers(0, 999), n_rows=st.integers(1, 8))
@settings(max_examples=20)
def test_what_is_found_of_rows_with_ties_does_not_depend_on_batches(seed, n_rows):
    rng, n_items = np.random.default_rng(seed), 12
    config = _config(RANKING)
    scores = torch.from_numpy(rng.integers(0, 3, (n_rows, n_items))).float()
    scores[:, 0] = -torch.inf
    positives = [torch.from_numpy(rng.permutation(np.arange(1, n_items))[: rng.integers(1, 4)]) for _ in range(n_rows)]
    together = [
        (scores, torch.arange(n_rows).repeat_interleave(torch.tensor([*map(len, positives)])), torch.cat(positives))
    ]
    apart = [(scores[[row]], torch.zeros_like(positives[row]), positives[row]) for row in range(n_rows)]
    found = [_evaluate(RankCollector(config), config, n_items, batches) for batches in (together, apart)]
    assert found[0] == found[1]


def test_equal_scores_of_many_targets_favour_nobody():
    config, n_items = _config(["Recall"], topk=(10,)), 101
    rows = [
        (torch.zeros(1, n_items), torch.zeros(2, dtype=torch.int64), torch.tensor([item, item + 50]))
        for item in range(1, 51)
    ]
    for scores, *_ in rows:
        scores[:, 0] = -torch.inf
    assert _evaluate(RankCollector(config), config, n_items, rows)["recall@10"] == pytest.approx(0.1, abs=0.001)
