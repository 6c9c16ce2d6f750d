"""A control: histories in another order, while the rows that are tested stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.split import all_but_last, shuffled_within_users
from recbole_perpeft.runs.run import create_dataset


@given(users=st.lists(st.integers(0, 4), min_size=1, max_size=30), n_last=st.integers(0, 2), n_kept=st.integers(1, 2))
def test_train_rows_of_leave_one_out(users, n_last, n_kept):
    users = np.array(users)
    found = all_but_last(users, n_last, n_kept)
    for user in np.unique(users):
        rows = np.flatnonzero(users == user)
        n_train = max(len(rows) - n_last, min(len(rows), n_kept))
        assert found[rows].tolist() == [True] * n_train + [False] * (len(rows) - n_train)


@given(users=st.lists(st.integers(0, 3), max_size=30), seed=st.integers(0, 99))
def test_rows_change_places_within_their_user(users, seed):
    users = np.array(users, dtype=np.int64)
    chosen = np.random.default_rng(seed).random(len(users)) < 0.7
    order = shuffled_within_users(users, chosen, seed)
    assert sorted(order) == list(range(len(users))) and (users[order] == users).all()
    assert (order[~chosen] == np.flatnonzero(~chosen)).all()


@pytest.mark.parametrize("model", ["SASRec", "GlobalPEFT"])
@given(split=st.sampled_from([{"LS": "valid_and_test"}, {"GT": 0.7}]))
@settings(max_examples=2)
def test_the_rows_that_are_tested_stay(log_folder, model, split):
    rows = [(user, f"i{number:02}", number) for user in "abc" for number in range(12)]
    log_folder.write(rows)
    built = {}
    for shuffle in (False, True):
        config = log_folder.config(
            model, eval_args={"split": split}, shuffle_histories=shuffle, MAX_ITEM_LIST_LENGTH=20
        )
        built[shuffle] = create_dataset(config).build()
    for plain, mixed in zip(built[False], built[True], strict=True):
        assert sorted(zip(*plain.phase_history.pairs(), strict=True)) == sorted(
            zip(*mixed.phase_history.pairs(), strict=True)
        )
    for plain, mixed in zip(built[False][1:], built[True][1:], strict=True):
        for field in ("user_id", "item_length"):
            assert plain.inter_feat[field].tolist() == mixed.inter_feat[field].tolist()
        targets = [
            part.dataset_name and part.id2token("item_id", part.inter_feat["item_id"]) for part in (plain, mixed)
        ]
        assert list(targets[0]) == list(targets[1])
    texts = [part[0].id2token("item_id", part[0].phase_history.items).tolist() for part in built.values()]
    assert texts[0] != texts[1]


def test_histories_of_shares_are_not_shuffled(log_folder):
    log_folder.write([("a", f"i{number}", number) for number in range(9)])
    config = log_folder.config("SASRec", eval_args={"split": {"RS": [8, 1, 1]}}, shuffle_histories=True)
    with pytest.raises(PerPEFTError, match="shuffle_histories needs a split {LS"):
        create_dataset(config).build()


@pytest.mark.parametrize("seed", range(4))
def test_the_rows_of_short_histories_stay_for_models_of_users(log_folder, seed):
    log_folder.write(
        [(user, f"i{place}", place) for user, n in {"a": 2, "b": 3, "c": 9}.items() for place in range(n)]
    )
    tested = {}
    for shuffle in (False, True):
        config = log_folder.config(
            "BPR", seed=seed, shuffle_histories=shuffle, train_neg_sample_args={"distribution": "uniform"}
        )
        parts = create_dataset(config).build()[1:]
        tested[shuffle] = [
            (part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist()) for part in parts
        ]
    assert tested[True] == tested[False]
