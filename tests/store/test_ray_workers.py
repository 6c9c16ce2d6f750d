"""What a worker process of Ray knows that its parent knew."""

from recbole_perpeft.pretrained import families
from recbole_perpeft.pretrained.families import Family
from recbole_perpeft.store.encode import HiddenStateSettings
from recbole_perpeft.store.ray_workers import _Worker


def test_a_worker_knows_the_families_that_users_added(bert_folder, monkeypatch):
    monkeypatch.setattr(families, "_added", [])
    mine = Family("mine", "text", "encoder.layer", None, "mean", model_types=frozenset({"bert"}))
    settings = HiddenStateSettings(str(bert_folder), (1,), pooling="mean", max_length=8)
    worker = _Worker("text", settings, 1, (mine,))
    assert worker._encoder._backbone.family == mine and families.added_families() == (mine,)
