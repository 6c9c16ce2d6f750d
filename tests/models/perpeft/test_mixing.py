"""Users who are scored by all groups (`group_mixing`)."""

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.models.perpeft.grouping import sequence_log_likelihood
from recbole_perpeft.nn.adapt.groups import ALL_GROUPS
from recbole_perpeft.runs.run import get_trainer, load, run
from recbole_perpeft.store.catalogues import CATALOGUES_FILE
from recbole_perpeft.use import approximate
from recbole_perpeft.use.export import export
from recbole_perpeft.use.recommend import Recommender
from support.new_items import settings_with_new_items

MIXED = {"regroup_every": 1, "group_mixing": 0.5}


@pytest.fixture(scope="module")
def settings(small_aspects, tmp_path_factory):
    found, _ = settings_with_new_items(small_aspects, tmp_path_factory.mktemp("mixing"))
    return found | {"epochs": 2, "n_groups": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(settings):
    last = {"eval_step": 3}  # the last model is kept, of which the weights are
    return run(model="PerPEFT", config_dict=settings | MIXED | last)


def recommender_of(trained):
    return Recommender.from_file(f"{trained['run_folder']}/best.pth")


@pytest.fixture(scope="module")
def loaded(trained):
    return load(trained["run_folder"])


def scores_by_loop(model, interaction, weights):
    """The weighted sum of the scores under each group, group by group."""
    item_seq, length = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    total = torch.zeros(len(interaction), model.n_items)
    with torch.no_grad():
        for group in range(model.n_groups):
            catalogue = model.catalogue(group)
            total += weights[:, group : group + 1] * (model.user_vectors(item_seq, length, catalogue) @ catalogue.T)
    return total


def test_weights_are_the_flattened_posterior_of_the_train_rows(loaded):
    _, model, _, train_data, *_ = loaded
    rows = train_data.dataset.inter_feat
    likelihood = [sequence_log_likelihood(model, rows, group) for group in range(3)]
    flat = 0.5 * (train_data.dataset.target_counts()[1:]).mean()
    assert 1 < flat < 3
    for user in (1, 20, 77):
        own = (rows["user_id"] == user).nonzero().flatten()
        weights = np.exp([float(each[own].sum()) / flat for each in likelihood])
        assert model.group_weights[user].numpy() == pytest.approx(weights / weights.sum(), abs=1e-3)
    assert not model.group_weights[0].any()


def test_scores_are_sums_over_groups_and_ranks_follow_them(loaded):
    config, model, *_, test_data = loaded
    interaction, history, row, items = next(iter(test_data))
    weights = model.group_weights[interaction["user_id"]]
    assert weights.max(1).values.min() < 0.9 and len(weights.argmax(1).unique()) > 1, "groups are mixed"
    expected = scores_by_loop(model, interaction, weights)
    with torch.no_grad():
        torch.testing.assert_close(model.full_sort_predict(interaction), expected, rtol=1e-4, atol=1e-5)
        interaction[model.ITEM_ID] = items
        torch.testing.assert_close(model.predict(interaction), expected[row, items], rtol=1e-4, atol=1e-5)
        ranks = model.ranks_of(interaction, history, items)
    expected[:, 0] = -torch.inf
    target = expected[row, items]
    if history is not None:
        expected[history] = -torch.inf
    assert ((expected > target[:, None] + 1e-4).sum(1) + 1 <= ranks).all()
    assert ((expected > target[:, None] - 1e-4).sum(1) + 1 >= ranks).all()


def test_a_user_of_whom_nothing_is_known_goes_by_the_nearest_group(loaded):
    _, model, *_ = loaded
    assert model.weights_of(torch.tensor([0, 5]), torch.tensor([2, 0])).tolist() == [
        [0, 0, 1],
        model.group_weights[5].tolist(),
    ]


@pytest.mark.parametrize("keeps_all", [True, False])
def test_lists_have_the_scores_of_an_evaluation(trained, keeps_all):
    recommender = recommender_of(trained)
    recommender.scorer.keeps_all = keeps_all
    model = recommender.model
    lists = recommender.for_users(recommender.all_users(), k=5)
    people = recommender.people_of_log(recommender.all_users())
    item_seq, length = (torch.from_numpy(part) for part in people.histories.newest(people.rows, model.max_seq_length))
    interaction = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: length}

    class Rows(dict):
        def __len__(self):
            return len(item_seq)

    expected = scores_by_loop(model, Rows(interaction), model.group_weights[people.users])
    for row, user in enumerate(recommender.all_users()[:40]):
        own = lists[lists["user_id"] == user]
        ids = recommender.item_ids(own["item_id"].tolist())
        assert own["score"].to_numpy() == pytest.approx(expected[row, ids].numpy(), abs=1e-4)
        seen = people.histories.rows(people.rows[row : row + 1])[1]
        others = np.setdiff1d(np.arange(1, model.n_items), [*seen, *ids])
        assert own["score"].min() >= expected[row, others].max() - 1e-4
    groups = lists.drop_duplicates("user_id").set_index("user_id")["group"]
    assert groups[recommender.all_users()].tolist() == model.user_group[people.users].tolist()


def test_strangers_and_new_items_are_served_whatever_was_asked_before(trained):
    recommender = recommender_of(trained)
    scorer = recommender.scorer
    of_group = scorer.vectors(1).clone()  # as for items that are similar in the eyes of a group
    assert len(of_group) == len(scorer.vectors(ALL_GROUPS)) == recommender.model.n_items + 5
    torch.testing.assert_close(of_group[: recommender.model.n_items], recommender.model.catalogue(1))
    histories = [[*recommender.item_tokens[1 + start : 5 + start], scorer.new_items[0]] for start in range(8)]
    lists = recommender.for_histories([list(map(str, each)) for each in histories], k=1000, include_new_items=True)
    people = recommender.people_of_histories(HistoryIndex.from_pairs(*_pairs(recommender, histories)))
    nearest = scorer.nearest_groups(people.histories, people.rows)
    for row, group in enumerate(nearest):
        vectors = scorer.vectors(int(group))
        newest = people.histories.newest(people.rows[row : row + 1], recommender.model.max_seq_length)
        item_seq, length = map(torch.from_numpy, newest)
        with torch.no_grad():
            expected = (recommender.model.user_vectors(item_seq, length, vectors) @ vectors.T)[0]
        own = lists[lists["row"] == row]
        assert set(scorer.new_items[1:]) <= set(own["item_id"]) and (own["group"] == group).all()
        ids = recommender.item_ids(own["item_id"].tolist())
        assert own["score"].to_numpy() == pytest.approx(expected[ids].numpy(), abs=1e-4)


def _pairs(recommender, histories):
    rows = np.repeat(np.arange(len(histories)), list(map(len, histories)))
    return rows, recommender.item_ids([str(token) for each in histories for token in each]), len(histories)


def test_nothing_is_kept_for_gradients(trained):
    recommender = recommender_of(trained)
    people = recommender.people_of_log(recommender.all_users()[:3])
    scorer = recommender.scorer
    for vectors in scorer.vectors(0), scorer.user_vectors(people.histories, people.rows, people.users, 0):
        assert not vectors.requires_grad


def test_a_finished_global_run_takes_the_place_of_the_first_stage(settings):
    for of_global in {}, MIXED:
        first = run(model="GlobalPEFT", config_dict=settings | of_global | {"epochs": 1})
        result = run(model="PerPEFT", config_dict=settings | MIXED | {"global_run": first["run_folder"], "epochs": 1})
        assert load(result["run_folder"])[1].group_weights.shape[1] == 3


def test_vectors_of_groups_are_kept_beside_the_checkpoint(trained, caplog):
    caplog.set_level(logging.INFO)
    recommender = recommender_of(trained)
    recommender.for_users(recommender.all_users()[:2], k=1)
    assert (
        "item vectors are computed again" not in caplog.text
        and (Path(trained["run_folder"]) / CATALOGUES_FILE).exists()
    )


def test_an_export_says_what_groups_count(trained, loaded, tmp_path):
    folder = export(trained["run_folder"], tmp_path / "model", onnx=False)
    users = pd.read_parquet(folder / "users.parquet")
    assert np.stack(users["weights"]) == pytest.approx(loaded[1].group_weights[1:].numpy())


def test_a_loaded_model_evaluates_to_what_was_recorded(trained, loaded):
    config, model, *_, test_data = loaded
    config["checkpoint_dir"] = trained["run_folder"]
    found = get_trainer(config)(config, model).evaluate(test_data, load_best_model=False)
    assert found == pytest.approx(trained["test_result"])


def test_the_preset_anneals_and_mixes(settings):
    result = run("PerPEFT", "aspects", ["strong", "annealed"], settings | {"epochs": 16})
    assert [move["temperature"] for move in result["regroupings"]][::5] == pytest.approx([0.5, 1 / 3, 1 / 6, 0])
    assert load(result["run_folder"])[1].mixes_groups


def test_mixing_needs_likelihoods(settings):
    with pytest.raises(PerPEFTError, match="group_mixing is 0.5, but without regroup_every nobody asks"):
        run(model="PerPEFT", config_dict=settings | {"group_mixing": 0.5})


@pytest.mark.skipif(find_spec("usearch") is None, reason="usearch is not installed")
def test_one_graph_serves_all_groups(trained, monkeypatch):
    graphs, made = [], approximate._graph
    monkeypatch.setattr(approximate, "_FEW_ITEMS", 2)
    monkeypatch.setattr(approximate, "_graph", lambda vectors: graphs.append(vectors.shape[1]) or made(vectors))
    recommender = recommender_of(trained)
    exact = recommender.for_users(recommender.all_users(), k=5)
    recommender.search_approximately()
    found = recommender.for_users(recommender.all_users(), k=5)
    assert graphs == [3 * recommender.model.item_encoder.hidden_size]
    assert (found["item_id"] == exact["item_id"]).mean() > 0.95
