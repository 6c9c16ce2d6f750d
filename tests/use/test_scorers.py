"""Models of this package score lists as they score an evaluation."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import union_of
from recbole_perpeft.use.recommend import Recommender


def recommender_of(prepared):
    parts = [part._dataset for part in (prepared.train_data, prepared.valid_data, prepared.test_data)]
    return Recommender(prepared.model, prepared.dataset, union_of(parts))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("VIP5", {}), ("ContentKNN", {"text_encoder": "aspects-clip", "image_encoder": "aspects-clip"}), ("PerPEFT", {})],
)
def test_scores_are_those_of_an_evaluation(prepare, name, settings):
    prepared = prepare(name, **settings)
    if name == "PerPEFT":
        prepared.personalise(2)
    recommender = recommender_of(prepared)
    users = recommender.all_users()[:7]
    table = recommender.for_users(users, k=100, exclude_seen=False)
    people = recommender.people_of_log(users)
    item_seq, length = recommender.history.newest(people.rows, prepared.model.max_seq_length)
    fields = {"user_id": people.users, "item_id_list": item_seq, "item_length": length}
    with torch.no_grad():
        scores = prepared.model.full_sort_predict(Interaction({k: torch.from_numpy(v) for k, v in fields.items()}))
    row = np.searchsorted(people.users, recommender.user_ids(table["user_id"]))
    expected = scores.numpy()[row, recommender.item_ids(table["item_id"])]
    np.testing.assert_allclose(table["score"], expected, rtol=1e-4, atol=1e-5)
    assert len(table) == 7 * (recommender.n_known - 1)
    if name == "VIP5":
        with pytest.raises(PerPEFTError, match="VIP5 learns who each user is"):
            recommender.for_histories([table["item_id"].tolist()[:2]])


def test_catalogues_of_groups_that_are_done_leave_the_memory(prepare):
    prepared = prepare()
    prepared.personalise(3)
    recommender = recommender_of(prepared)
    recommender.scorer.keeps_all = False
    recommender.for_histories([recommender.item_tokens[n : n + 4].tolist() for n in range(1, 40)])
    assert len(recommender.scorer._vectors) == 2 and None in recommender.scorer._vectors
    assert not prepared.model._catalogues
