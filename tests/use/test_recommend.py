from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.runs.run import get_trainer, load, run
from recbole_perpeft.use.export import export
from recbole_perpeft.use.recommend import Recommender
from support.new_items import settings_with_new_items


@pytest.fixture(scope="module")
def trained(small_aspects, tmp_path_factory):
    """A run on a copy of the data in which five items have lost all their interactions."""
    settings, new_items = settings_with_new_items(small_aspects, tmp_path_factory.mktemp("recommend"))
    result = run(model="PerPEFT", config_dict=settings | {"epochs": 1, "n_groups": 2})
    return f"{result['run_folder']}/best.pth", new_items


@pytest.fixture(scope="module")
def recommender(trained):
    return Recommender.from_file(trained[0])


def test_known_users_get_the_best_unseen_items_of_their_group(recommender):
    model = recommender.model
    user = recommender.all_users()[0]
    history = recommender.history.rows(np.array([1]))[1]
    lists = recommender.for_users([user], k=7)
    group = int(model.user_group[1])
    catalogue = model.catalogue(group)
    item_seq, length = recommender.history.newest(np.array([1]), model.max_seq_length)
    with torch.no_grad():
        scores = (model.user_vectors(torch.from_numpy(item_seq), torch.from_numpy(length), catalogue) @ catalogue.T)[0]
    scores[0] = -torch.inf
    scores[torch.from_numpy(history)] = -torch.inf
    assert lists["item_id"].tolist() == recommender.item_tokens[scores.argsort(descending=True)[:7]].tolist()
    assert lists["rank"].tolist() == list(range(1, 8))
    assert (lists["group"] == group).all()
    assert (lists["user_id"] == user).all()


def test_users_without_anything_to_read_are_told(recommender):
    users, items = recommender.history.pairs()
    history = HistoryIndex.from_pairs(users[users != 1], items[users != 1], recommender.history.n_users)
    other = Recommender(recommender.model, recommender.dataset, history)
    first, second = recommender.all_users()[:2]
    with pytest.raises(PerPEFTError, match=f"1 users have no interactions that the model could read: {first}; give"):
        other.for_users([second, first])
    assert len(other.for_users([second], k=3)) == 3


def test_a_new_user_goes_to_the_nearest_centroid(recommender):
    model = recommender.model
    histories = [recommender.item_tokens[1 + start : 5 + start].tolist() for start in range(40)]
    lists = recommender.for_histories(histories, k=1)
    catalogue = model.catalogue(None)
    for row, history in enumerate(histories):
        item_seq = torch.tensor([0] * (model.max_seq_length - 4) + [*recommender.item_ids(history)])
        with torch.no_grad():
            vector = model.user_encoder(catalogue[item_seq].unsqueeze(0), item_seq.unsqueeze(0))[0, -1]
        expected = (model.group_centroids - vector).pow(2).sum(1).argmin()
        assert lists["group"][row] == expected
    assert lists["group"].nunique() == 2


def test_items_without_interactions_are_scored_by_content(recommender, trained):
    new_items = trained[1]
    history = [recommender.item_tokens[1], new_items[0]]
    with_new = recommender.for_histories([history], k=1000, include_new_items=True)
    without = recommender.for_histories([history], k=1000)
    assert set(new_items[1:]) <= set(with_new["item_id"])
    assert not set(new_items) & set(without["item_id"])
    assert new_items[0] not in set(with_new["item_id"])  # seen
    assert len(with_new) == len(without) + 4
    encoder = recommender.model.item_encoder
    vectors = encoder.new_item_vectors(new_items, None)
    assert vectors.shape == (5, 32)
    assert vectors.std(0).max() > 0


def test_seen_items_may_stay(recommender):
    history = recommender.item_tokens[1:4].tolist()
    lists = recommender.for_histories([history], k=1000, exclude_seen=False)
    assert set(history) <= set(lists["item_id"])


@pytest.mark.parametrize(
    ("histories", "message"), [([["nonsense"]], "history 0 .*nonsense"), ([[]], "history 0 has no item")]
)
def test_wrong_histories(recommender, histories, message):
    with pytest.raises(PerPEFTError, match=message):
        recommender.for_histories(histories)


def test_unknown_users(recommender):
    with pytest.raises(PerPEFTError, match="nobody"):
        recommender.for_users(["nobody"])


def test_command_line(trained, recommender, capsys):
    user, item = recommender.all_users()[0], recommender.item_tokens[1]
    assert main(["recommend", "--run", trained[0], "--users", user, "--history", item, "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["user_id", "rank", "item_id", "score", "group", "title"]
    assert len(lines) == 6
    assert main(["recommend", "--run", trained[0], "--users", "nobody"]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_finished_run_encodes_no_catalogue_again(trained, monkeypatch, tmp_path):
    model_file, new_items = trained

    def lists_of(recommender):
        histories = [recommender.item_tokens[n : n + 4].tolist() for n in range(1, 30)]
        return [recommender.for_users(recommender.all_users(), k=5), recommender.for_histories(histories, k=5)]

    (tmp_path / "best.pth").write_bytes(Path(model_file).read_bytes())  # alone: nothing is kept beside it
    expected = lists_of(Recommender.from_file(tmp_path / "best.pth"))
    encoder = "recbole_perpeft.nn.item_encoder.ItemEncoder"
    for name in ("encode_catalogue", "new_item_vectors"):
        monkeypatch.setattr(f"{encoder}.{name}", lambda *_: pytest.fail("nothing is to be encoded"))
    kept = Recommender.from_file(model_file)
    for found, wanted in zip(lists_of(kept), expected, strict=True):
        pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    export(model_file, tmp_path / "exported", onnx=False)
    config, model, *_, test_data = load(model_file)
    config["checkpoint_dir"] = str(tmp_path / "again")
    get_trainer(config)(config, model).evaluate(test_data, load_best_model=False)
