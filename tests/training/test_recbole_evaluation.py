"""RecBole's models have the numbers of RecBole's own loader, trainer and evaluator, on a small `aspects`."""

import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.sampler import Sampler
from recbole.trainer import Trainer

from recbole_perpeft.core.compat import tensorboard_in
from recbole_perpeft.data.history import PHASES
from recbole_perpeft.runs.run import create_dataset


# What RecBole masks: nothing for sequential models, the history but the targets for others.
@pytest.mark.parametrize(("model", "mask"), [("SASRec", "none"), ("BPR", "keep_target"), ("Pop", "keep_target")])
def test_our_evaluation_gives_the_numbers_of_recbole(prepare_recbole, tmp_path, model, mask):
    own = {"mask_history": mask, "metrics": ["Recall", "MRR", "NDCG", "Hit", "MAP", "Precision", "GiniIndex"]}
    prepared = prepare_recbole(model, **own, epochs=1, metric_decimal_place=8)
    config, network, trainer = prepared.config, prepared.model, prepared.trainer(tmp_path)
    train_data, test_data = prepared.train_data, prepared.test_data
    trainer.keeps_files = False
    trainer.fit(train_data, None, saved=True)
    if model == "Pop":  # among equal scores RecBole takes any order, ours the middle: make them differ
        network.item_cnt = network.item_cnt + torch.rand(network.item_cnt.shape) / 10
    ours = trainer.evaluate(test_data, load_best_model=False)

    built = create_dataset(config).build()
    sampler = None if model == "SASRec" else Sampler(list(PHASES), built, "uniform").set_phase("test")
    with tensorboard_in(tmp_path):
        theirs = Trainer(config, network)
    theirs.eval_collector.data_collect(train_data)
    loader = FullSortEvalDataLoader(config, built[2], sampler)
    expected = theirs.evaluate(loader, load_best_model=False)
    assert set(ours) == set(expected) and {"recall@5", "map@10", "giniindex@10"} <= set(ours)
    assert {name: ours[name] for name in expected} == pytest.approx(dict(expected), abs=1e-7)
    assert all(value > 0 for value in expected.values())
