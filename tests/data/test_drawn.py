"""Drawn candidates: `mask_history` says for all models what may be drawn, and all models get the same."""

import numpy as np
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data import evaluation
from recbole_perpeft.runs.run import create_dataset, data_preparation

MODELS = ("BPR", "SASRec", "GlobalPEFT")
N_DRAWN = 20


def write_shop(log_folder, n_users=12, n_items=30):
    """Users of 5 to 9 clicks, some on an item that they had before; the clicks of each."""
    rng = np.random.default_rng(1)
    clicks = {
        f"u{user}": [f"i{item}" for item in rng.integers(n_items, size=rng.integers(5, 10))] for user in range(12)
    }
    clicks["u0"][-1] = clicks["u0"][0]
    clicks["all"] = [f"i{item}" for item in range(n_items)][: n_items - 3]
    log_folder.write([(user, item, second) for user, items in clicks.items() for second, item in enumerate(items)])
    return clicks


def loaders(log_folder, model, mode=f"uni{N_DRAWN}", **more):
    negatives = {"train_neg_sample_args": {"distribution": "uniform"}} if model == "BPR" else {}
    config = log_folder.config(model, eval_args={"mode": mode}, **negatives, **more)
    dataset = create_dataset(config)
    return dataset, data_preparation(config, dataset)


def test_a_large_catalogue_leaves_fewer_lists_a_batch(log_folder, monkeypatch):
    write_shop(log_folder)
    _, (_, whole, _) = loaders(log_folder, "SASRec")
    monkeypatch.setattr(evaluation, "_SCORES_AT_ONCE", 2 * whole._dataset.item_num)
    _, (_, limited, _) = loaders(log_folder, "SASRec")
    assert whole.step > limited.step == 2


def lists_of(dataset, loader):
    """Target and its other candidates, by user, as tokens."""
    found = {}
    for rows, of_list, positive_u, positive_i in loader:
        assert torch.equal(positive_u, torch.arange(len(positive_i)))
        users, items = (dataset.id2token(name, rows[name].numpy()) for name in ("user_id", "item_id"))
        for number, target in enumerate(dataset.id2token("item_id", positive_i.numpy())):
            mine = of_list.numpy() == number
            (user,) = set(users[mine])
            assert rows["label"].numpy()[mine].tolist() == [float(item == target) for item in items[mine]]
            found[user] = target, list(items[mine])
    return found


@pytest.mark.parametrize("mask_history", ["all", "keep_target", "none"])
@pytest.mark.parametrize("model", MODELS)
def test_what_is_drawn_follows_mask_history(log_folder, model, mask_history):
    clicks = write_shop(log_folder)
    dataset, (_, *evaluation) = loaders(log_folder, model, mask_history=mask_history)
    n_seen = 0
    for n_after, loader in zip((1, 0), evaluation, strict=True):
        found = lists_of(dataset, loader)
        assert found.keys() == clicks.keys()
        for user, (target, candidates) in found.items():
            *before, expected = clicks[user][: len(clicks[user]) - n_after]
            assert target == expected
            drawn = [item for item in candidates if item != target]
            assert len(drawn) == N_DRAWN
            assert (target in candidates) == (mask_history != "all" or target not in before)
            n_seen += len({*drawn} & {*before})
    assert (n_seen > 0) == (mask_history == "none")


@pytest.mark.parametrize("mode", ["uni20", "pop20"])
def test_all_models_and_epochs_have_the_same_candidates(log_folder, mode):
    write_shop(log_folder)
    found = []
    for model in MODELS:
        dataset, (_, _, test) = loaders(log_folder, model, mode)
        found += [lists_of(dataset, test), lists_of(dataset, test)]
    assert all(lists == found[0] for lists in found)
    dataset, (_, valid, test) = loaders(log_folder, "BPR", mode, seed=7)
    assert lists_of(dataset, test) != found[0] and lists_of(dataset, valid) != lists_of(dataset, test)


def test_what_is_drawn_depends_neither_on_batches_nor_on_who_else_is_tested(log_folder):
    """BPR tests users of two clicks, sequential models do not."""
    rng = np.random.default_rng(3)
    lengths = {f"u{user:02}": int(rng.integers(2, 6)) for user in range(40)}
    log_folder.write(
        [
            (user, f"i{item}", place)
            for user, n in lengths.items()
            for place, item in enumerate(rng.permutation(40)[:n])
        ]
    )
    found = {}
    for model, batch in [("BPR", 4096), ("SASRec", 4096), ("SASRec", 22), ("GlobalPEFT", 100)]:
        dataset, (_, _, test) = loaders(log_folder, model, eval_batch_size=batch)
        found[model, batch] = lists_of(dataset, test)
    everybody = found.pop(("BPR", 4096))
    assert len(everybody) == 40
    for lists in found.values():
        assert 20 < len(lists) < 40 and lists == {user: everybody[user] for user in lists}


def test_popular_items_are_drawn_more_often(log_folder):
    rows = [
        (f"u{user}", "hit" if place == 0 else f"i{place}{user % 4}", place) for user in range(60) for place in range(4)
    ]
    log_folder.write(rows)
    dataset, (_, _, test) = loaders(log_folder, "SASRec", "pop20", mask_history="none")
    drawn = [item for target, items in lists_of(dataset, test).values() for item in items if item != target]
    # 60 of 240 interactions; a user's own target, one of 12 others with 15 each, is not drawn for him.
    assert drawn.count("hit") / len(drawn) == pytest.approx(60 / 225, abs=0.05)


def test_several_targets_of_a_user_are_one_list_of_a_model_of_users(log_folder):
    log_folder.write([("u", f"i{number}", number) for number in range(8)] + [("v", f"j{n}", n) for n in range(8)])
    split = {"split": {"RS": [0.5, 0.25, 0.25]}, "mode": "uni5"}
    config = log_folder.config("BPR", eval_args=split, train_neg_sample_args={"distribution": "uniform"})
    dataset = create_dataset(config)
    (batch,) = data_preparation(config, dataset)[2]
    rows, of_list, positive_u, positive_i = batch
    assert positive_u.tolist() == [0, 0, 1, 1] and len(rows) == len(of_list) == 4 * 6
    assert set(dataset.id2token("item_id", positive_i.numpy())) == {"i6", "i7", "j6", "j7"}
    for number in (0, 1):
        user = int(rows["user_id"][of_list == number][0])
        drawn = rows["item_id"][(of_list == number) & (rows["label"] == 0)]
        own = "i" if dataset.id2token("user_id", user) == "u" else "j"
        assert not [item for item in dataset.id2token("item_id", drawn.numpy()) if item.startswith(own)]


@pytest.mark.parametrize(
    ("model", "mode"), [("BPR", "full"), ("BPR", "uni5"), ("SASRec", "uni5"), ("GlobalPEFT", "uni5")]
)
def test_a_user_who_owns_all_items_is_named(log_folder, model, mode):
    owned = {"whale": range(6), "a": range(4), "b": range(2, 6)}
    log_folder.write([(user, f"i{item}", place) for user, items in owned.items() for place, item in enumerate(items)])
    with pytest.raises(
        PerPEFTError, match=r"1 user\(s\) own the whole catalogue of 6 items.*: whale\. Leave them out"
    ):
        loaders(log_folder, model, mode)
    _, parts = loaders(log_folder, model, mode, user_inter_num_interval="[2,6)")
    assert len(parts[2]._dataset) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metrics": ["NDCG"]}, "mode labeled measures scores of rows, not ranks"),
        ({"metrics": ["AUC"], "valid_metric": "AUC"}, "needs labels, and log has no 'label'"),
    ],
)
def test_labels_that_are_missing_are_told_before_the_training(log_folder, more, message):
    write_shop(log_folder)
    with pytest.raises(PerPEFTError, match=message):
        loaders(log_folder, "BPR", "labeled", **more)


def test_popularity_of_train_negatives_is_that_of_the_train_part(log_folder):
    rows = [(f"u{user}", f"i{(user + place) % 7}", place) for user in range(30) for place in range(5)]
    rows += [(f"u{user}", "late", 99) for user in range(30)]
    log_folder.write(rows)
    negatives = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}}
    dataset = create_dataset(config := log_folder.config("BPR", **negatives))
    train = data_preparation(config, dataset)[0]
    drawn = torch.cat([batch["neg_item_id"] for batch in train])
    assert "late" not in set(dataset.id2token("item_id", drawn.numpy()))
