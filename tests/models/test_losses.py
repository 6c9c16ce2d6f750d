"""Every loss with every model of content."""

import pytest
import torch
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.runs.run import run

SIDE = {"peft_type": "iisan", "peft_config": {"n_blocks": 2}}
STORED = {"PerPEFT": SIDE, "GlobalPEFT": {"peft_type": "none"}, "IISAN": {}, "MoRec": {"adaptation": "frozen"}}
TUNED = {"PerPEFT": {}, "GlobalPEFT": {}, "MoRec": {"adaptation": "lora"}}
LOSSES = ("bce", "gbce", "sampled_softmax", "in_batch", "softmax")
SHORT = {"epochs": 1, "epochs_global": 1, "n_negatives": 20, "learning_rate": 3e-3, "MAX_ITEM_LIST_LENGTH": 3}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", STORED)
def test_every_loss_trains_every_model_whose_content_is_stored(aspects_settings, model, loss):
    result = run(model, config_dict=aspects_settings | SHORT | STORED[model] | {"loss_type": loss})
    # 80 items, of which a user has seen some: blind guessing gives less than 0.2.
    assert result["test_result"]["hit@10"] > 0.1
    assert result["train_targets"] == result["train_interactions"] - 150


@pytest.mark.parametrize("loss", ["gbce", "sampled_softmax"])
@pytest.mark.parametrize("model", TUNED)
def test_losses_that_draw_train_every_model_that_encodes(aspects_settings, model, loss):
    assert run(model, config_dict=aspects_settings | SHORT | TUNED[model] | {"loss_type": loss})["test_result"]


@pytest.mark.parametrize("model", TUNED)
def test_the_whole_catalogue_is_no_candidate_where_a_foundation_model_would_encode_it(prepare, model):
    with pytest.raises(PerPEFTError, match=r"80 items through a foundation model .*choose sampled_softmax"):
        prepare(model, **TUNED[model], loss_type="softmax")


def naive(prepared, batch, group, candidates):
    """Cross-entropy of every target among the candidates of its user, one position at a time."""
    model, terms = prepared.model, []
    vectors = torch.cat([model.item_encoder(torch.tensor([item]), group) for item in range(model.n_items)])
    for row in range(len(batch)):
        length = batch["item_length"][row : row + 1]
        inputs, targets = (
            left_pad(batch[name][row : row + 1], length) for name in ("item_id_list", "pos_item_id_list")
        )
        hidden = model.user_encoder(vectors[inputs], inputs)[0]
        for slot, target in enumerate(targets[0].tolist()):
            if target:
                others = [item for item in candidates(int(batch["user_id"][row])) if item != target]
                logits = vectors[[target, *others]] @ hidden[slot]
                terms.append(-functional.log_softmax(logits, 0)[0])
    return torch.stack(terms).mean()


def test_softmax_of_a_batch_is_over_the_catalogue_as_its_group_sees_it(prepare):
    prepared = prepare("PerPEFT", **SIDE, loss_type="softmax", MAX_ITEM_LIST_LENGTH=3, train_overlap=0.4)
    model = prepared.personalise().eval()
    with torch.no_grad():
        for batch in list(prepared.train_data)[:3]:
            group = int(batch["user_id"][0]) % 3
            expected = naive(prepared, batch, group, lambda user: range(1, model.n_items))
            assert model.calculate_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_sampled_softmax_compares_with_the_pool_of_the_group_without_what_a_user_has(prepare):
    prepared = prepare("PerPEFT", **SIDE, loss_type="sampled_softmax", n_negatives=1000)
    model, history = prepared.personalise().eval(), prepared.train_data.dataset.interactions
    users, items = history.pairs()
    own = {user: set(items[users == user].tolist()) for user in history.users}
    with torch.no_grad():
        for batch in list(prepared.train_data)[:3]:
            group = int(batch["user_id"][0]) % 3
            pool = set().union(*(mine for user, mine in own.items() if user % 3 == group))
            expected = naive(prepared, batch, group, lambda user, pool=pool: sorted(pool - own[user]))
            assert model.calculate_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_item_of_a_step_is_encoded_once(prepare, monkeypatch):
    prepared = prepare("GlobalPEFT", loss_type="sampled_softmax", n_negatives=30)
    batch, seen = next(iter(prepared.train_data)), []
    encoder = prepared.model.item_encoder.content_encoder
    encode = type(encoder).forward

    def forward(self, items, group):
        seen.extend(items.tolist())
        return encode(self, items, group)

    monkeypatch.setattr(type(encoder), "forward", forward)
    prepared.model.calculate_loss(batch)
    needed = set(batch["item_id_list"].flatten().tolist()) | set(batch["pos_item_id_list"].flatten().tolist())
    assert sorted(seen) == sorted(needed | set(batch["candidate_items"][0].tolist()))
