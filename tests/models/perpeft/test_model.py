import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.training.ranks import target_ranks
from recbole_perpeft.training.rates import LearningRateSettings


def all_rows(loader):
    return [batch[0] for batch in loader]


def naive_scores(model, row, group):
    """One user, one item at a time, with vectors encoded for this call alone."""
    history = row["item_id_list"][: row["item_length"]].tolist()
    padded = torch.tensor([0] * (model.max_seq_length - len(history)) + history)
    with torch.no_grad():
        vectors = torch.stack([model.item_encoder(item.view(1), group)[0] for item in padded])
        user = model.user_encoder(vectors.unsqueeze(0), padded.unsqueeze(0))[0, -1]
        return torch.stack([user @ model.item_encoder(torch.tensor([i]), group)[0] for i in range(model.n_items)])


@pytest.mark.parametrize("personalised", [False, True])
def test_scores_equal_a_loop_over_users(prepare, personalised):
    prepared = prepare()
    model = (prepared.personalise() if personalised else prepared.model).eval()
    rows = all_rows(prepared.valid_data)[0]
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        single = model.predict(rows)
    for index in (0, 1, 2, 50):
        row = {name: rows[name][index] for name in ("user_id", "item_id_list", "item_length", "item_id")}
        group = int(row["user_id"]) % 3 if personalised else None
        expected = naive_scores(model, row, group)
        torch.testing.assert_close(scores[index], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single[index], expected[row["item_id"]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("personalised", [False, True])
def test_ranks_are_those_of_all_scores(prepare, personalised):
    prepared = prepare()
    model = (prepared.personalise() if personalised else prepared.model).eval()
    for rows, masked, positive_u, positive_i in prepared.valid_data:
        with torch.no_grad():
            scores = model.full_sort_predict(rows)
        scores[:, 0] = -torch.inf
        scores[masked] = -torch.inf
        assert positive_u.equal(torch.arange(len(rows)))
        assert model.ranks_of(rows, masked, positive_i).equal(target_ranks(scores, positive_i))


def test_all_scores_are_made_only_for_who_asks_for_them(prepare, monkeypatch, tmp_path):
    prepared = prepare()
    model, trainer = prepared.model, prepared.trainer(tmp_path)
    evaluate = partial(trainer.evaluate, prepared.valid_data, load_best_model=False)
    with monkeypatch.context() as patched:
        patched.setattr(trainer.eval_collector, "_needs_items", True)
        by_scores, expected = evaluate(), trainer.target_ranks
    with monkeypatch.context() as patched:
        patched.setattr(type(model), "ranks_of", None)
        patched.setattr(type(model), "full_sort_predict", lambda model, rows: model.user_encoder.missing)
        with pytest.raises(AttributeError, match="missing"):
            evaluate()  # scores of a subclass are its own
    given, collect = [], trainer.eval_collector.eval_batch_collect
    monkeypatch.setattr(
        trainer.eval_collector,
        "eval_batch_collect",
        lambda scores, *rest: (given.append(scores), collect(scores, *rest)),
    )
    assert evaluate() == by_scores and given == [None] * len(prepared.valid_data)
    assert trainer.target_ranks.ranks.equal(expected.ranks) and trainer.target_ranks.items.equal(expected.items)


def test_groups_see_items_differently(prepare):
    model = prepare().personalise().eval()
    assert not torch.allclose(model.catalogue(0), model.catalogue(1), atol=1e-3)


def test_loss_equals_the_formula(prepare):
    prepared = prepare(dropout_prob=0.0, peft_type="ia3")
    model = prepared.personalise().train()
    batch = next(iter(prepared.train_data))
    group = int(batch["user_id"][0]) % 3
    vectors = torch.stack([model.item_encoder(torch.tensor([i]), group)[0] for i in range(model.n_items)])
    terms = {"positive": [], "negative": []}
    for row in range(len(batch)):
        length = int(batch["item_length"][row])
        item_seq = left_pad(batch["item_id_list"][row : row + 1], batch["item_length"][row : row + 1])
        hidden = model.user_encoder(vectors[item_seq], item_seq)[0, -length:]
        for slot in range(length):
            terms["positive"].append(
                -functional.logsigmoid(hidden[slot] @ vectors[batch["pos_item_id_list"][row, slot]])
            )
            terms["negative"].append(
                -functional.logsigmoid(-(hidden[slot] @ vectors[batch["neg_item_id_list"][row, slot]]))
            )
    expected = sum(torch.stack(part).mean() for part in terms.values())
    expected = expected + 1e-6 * model.item_encoder.id_embedding.weight.pow(2).sum().sqrt()
    torch.testing.assert_close(model.calculate_loss(batch), expected, atol=1e-5, rtol=1e-5)


def test_a_step_moves_only_the_active_group_and_the_shared_parts(prepare):
    prepared = prepare(weight_decay=0.5)
    model = prepared.personalise().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    batch = next(iter(prepared.train_data))
    active = str(int(batch["user_id"][0]) % 3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.calculate_loss(batch).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    owned = {name for name in before if ".projectors." in name or ".modules_of_groups." in name}
    idle = {
        name for name in owned if f"projectors.{active}." not in name and f"modules_of_groups.{active}." not in name
    }
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert len(idle) == 3 * len(owned) // 4  # the global module and two of three groups
    assert not moved & idle
    assert not moved & frozen
    assert any(f"projectors.{active}." in name for name in moved)
    assert any(f"modules_of_groups.{active}." in name for name in moved)
    assert "item_encoder.id_embedding.weight" in moved


def test_personalising_copies_the_global_module(prepare):
    prepared = prepare()
    model = prepared.model.eval()
    rows = all_rows(prepared.valid_data)[0]
    with torch.no_grad():
        before = model.full_sort_predict(rows)
        model.personalise(torch.zeros(model.n_users, dtype=torch.long), torch.zeros(1, 32))
        after = model.full_sort_predict(rows)
    torch.testing.assert_close(after, before)


def count_encodings(model, monkeypatch):
    """Numbers of items of each call of the content encoder."""
    calls = []
    encode = model.item_encoder.content_encoder.forward

    def counted(items, group):
        calls.append(len(items))
        return encode(items, group)

    monkeypatch.setattr(model.item_encoder.content_encoder, "forward", counted)
    return calls


def test_the_catalogue_is_encoded_once_a_group_and_again_when_weights_change(prepare, monkeypatch):
    prepared = prepare(eval_batch_size=16)
    model = prepared.personalise().eval()
    calls = count_encodings(model, monkeypatch)
    with torch.no_grad():
        for rows in all_rows(prepared.valid_data):
            model.full_sort_predict(rows)
        assert sum(calls) == 3 * model.n_items
        model.item_encoder.id_embedding.weight[1] += 1.0
        model.full_sort_predict(all_rows(prepared.valid_data)[0])
    assert sum(calls) == 6 * model.n_items


def test_a_step_encodes_each_distinct_item_once(prepare, monkeypatch):
    prepared = prepare()
    model = prepared.model.train()
    calls = count_encodings(model, monkeypatch)
    batch = next(iter(prepared.train_data))
    model.calculate_loss(batch)
    items = torch.cat([batch[f].flatten() for f in ("item_id_list", "pos_item_id_list", "neg_item_id_list")])
    assert calls == [len(items.unique())]


def test_a_state_dict_brings_groups_along_and_no_foundation_weights(prepare):
    prepared = prepare()
    model = prepared.personalise().eval()
    state = model.state_dict()
    assert not [name for name in state if "template" in name and "lora" not in name]
    fresh = prepared.fresh_model(seed=9)
    fresh.load_state_dict(state)
    rows = all_rows(prepared.valid_data)[0]
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval().full_sort_predict(rows), model.full_sort_predict(rows))


def test_a_state_dict_of_another_foundation_model_is_refused(prepare):
    prepared = prepare()
    state = prepared.model.state_dict() | {"_extra_state": {"foundation_fingerprint": "0123"}}
    with pytest.raises(PerPEFTError, match="foundation_model"):
        prepared.fresh_model().load_state_dict(state)


def test_the_name_of_a_foundation_model_tells_its_configuration(clip_folder, tmp_path):
    """Heads and activations are no weights, and make other vectors of the same ones."""
    other = Path(shutil.copytree(clip_folder, tmp_path / "other"))
    values = json.loads((other / "config.json").read_text())
    values["text_config"]["hidden_act"] = "relu"
    (other / "config.json").write_text(json.dumps(values))
    first, second = (FoundationModel.from_pretrained(folder).fingerprint for folder in (clip_folder, other))
    assert first != second and first.partition(".")[0] == second.partition(".")[0]


@pytest.mark.parametrize(("known", "warns"), [("{}", False), ("{}.01234567", True)])
def test_checkpoints_know_the_configuration_if_there_is_one(prepare, caplog, known, warns):
    model = prepare().model
    weights = model.item_encoder.foundation_fingerprint.partition(".")[0]
    model.set_extra_state({"foundation_fingerprint": known.format(weights)})
    assert ("configuration of the foundation model is not that of the training" in caplog.text) == warns


def test_a_frozen_foundation_model_is_run_once_an_item(prepare):
    prepared = prepare(peft_type="none")
    assert not [name for name, _ in prepared.model.named_parameters() if "template" in name]
    model = prepared.personalise().train()
    model.calculate_loss(next(iter(prepared.train_data))).backward()
    assert model.item_encoder.projectors["0"] is not model.item_encoder.projectors["1"]


def test_nearest_group_is_that_of_the_nearest_centroid(prepare):
    model = prepare().personalise()
    assert model.nearest_group(model.group_centroids + 0.01).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 0}, "n_groups"),
        ({"group_negative_ratio": 1.5}, "group_negative_ratio"),
        ({"grouping": "k-means"}, "grouping is .k-means.: it must be one of kmeans, random, user_field"),
        ({"grouping": "user_field"}, "group_field"),
        ({"regroup_every": -1}, "regroup_every"),
        ({"peft_type": "lorra"}, "lora"),
        ({"peft_config": {"target_modules": ["q_prj"]}}, "q_proj"),
        ({"hidden_size": 30}, "n_heads"),
        ({"missing_content": "skip"}, "missing_content"),
        ({"mask_history": "some"}, "mask_history"),
        ({"negative_distribution": "zipf"}, "negative_distribution|distribution"),
    ],
)
def test_wrong_settings_name_the_key(prepare, settings, message):
    with pytest.raises(PerPEFTError, match=message):
        prepare(**settings)


@pytest.mark.parametrize("peft_type", ["lora", "ln_tuning", "none"])
def test_modules_in_a_tower_have_the_rate_of_its_side(prepare, peft_type):
    model = prepare(peft_type=peft_type).personalise()
    rates = LearningRateSettings(1.0, "official", lr_side_text=2.0, lr_side_image=3.0)
    rate_of = {id(parameter): group["lr"] for group in rates.groups(model) for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(rate_of) == len(trained)
    for name, parameter in trained.items():
        side = 2.0 if "text_model" in name else 3.0 if "vision_model" in name else 1.0
        assert rate_of[id(parameter)] == side, name
    assert (set(rate_of.values()) == {1.0, 2.0, 3.0}) == (peft_type != "none")


def test_popularity_is_that_of_the_groups_own_interactions(prepare):
    prepared = prepare("PerPEFT", loss_type="in_batch")
    model = prepared.personalise()
    pairs = list(zip(*prepared.train_data.dataset.interactions.pairs(), strict=True))
    for group in (None, 0, 1, 2):
        counts = [1e-300] + [0] * (model.n_items - 1)
        for user, item in pairs:
            counts[item] += group is None or int(model.user_group[user]) == group
        expected = torch.tensor(counts[1:], dtype=torch.float64).clamp(min=1).sqrt()
        found = model.log_popularity_of(group)(0.5)
        assert torch.allclose(found[1:].double(), (expected / expected.sum()).log(), atol=1e-6)
    model.set_groups(torch.where(model.user_group >= 0, 0, -1), model.group_centroids)
    assert torch.equal(model.log_popularity_of(0)(0.5), model.log_popularity_of(None)(0.5))


def test_a_user_without_train_items_is_scored_by_the_nearest_group(prepare):
    prepared = prepare()
    model = prepared.personalise().eval()
    interaction, *_ = next(iter(prepared.test_data))
    users = interaction["user_id"]
    vectors = model.user_vectors(interaction["item_id_list"], interaction["item_length"], model.catalogue(None))
    nearest = model.nearest_group(vectors).cpu()
    groups = model.user_group.clone()
    groups[users[:4]] = -1
    model.set_groups(groups, model.group_centroids)
    scores = model.full_sort_predict(interaction)
    groups[users[:4]] = nearest[:4]
    model.set_groups(groups, model.group_centroids)
    assert torch.equal(scores, model.full_sort_predict(interaction))
