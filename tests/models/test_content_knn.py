"""The baseline without training, and the control whose content belongs to other items."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from recbole_perpeft.runs.run import load, run


def test_scores_are_sums_of_cosines(prepare):
    prepared = prepare("ContentKNN", history_decay=0.5)
    model = prepared.model.eval()
    interaction, *_ = next(iter(prepared.test_data))
    scores = model.full_sort_predict(interaction)
    halves = model.content.chunk(2, dim=1)  # two towers of one width
    assert torch.allclose(halves[0][1:].norm(dim=1), torch.ones(model.n_items - 1), atol=1e-5)
    for row in range(0, len(interaction), 17):
        length = int(interaction["item_length"][row])
        expected = torch.zeros(model.n_items)
        for place, item in enumerate(interaction["item_id_list"][row, :length]):
            for half in halves:
                expected[1:] += 0.5 ** (length - 1 - place) * functional.cosine_similarity(half[item], half[1:])
        assert torch.allclose(scores[row], expected, atol=1e-4)
    interaction["item_id"] = torch.arange(len(interaction)) % model.n_items
    expected = scores[torch.arange(len(scores)), interaction["item_id"]]
    assert torch.allclose(model.predict(interaction), expected, atol=1e-5)


def test_a_run_is_better_than_chance_and_loads(aspects_settings):
    result = run("ContentKNN", config_dict=aspects_settings | {"epochs": 1})
    shuffled = run("ContentKNN", config_dict=aspects_settings | {"epochs": 1, "shuffle_content": True})
    assert result["test_result"]["hit@10"] > 1.3 * shuffled["test_result"]["hit@10"]
    config, model, *_, test_data = load(result["run_folder"])
    assert model.content.abs().sum() > 0


@pytest.mark.parametrize("name", ["GlobalPEFT", "IISAN", "MoRec"])
def test_shuffled_content_is_that_of_another_item(prepare, name):
    settings = {"adaptation": "frozen", "n_blocks": 2} if name != "GlobalPEFT" else {"peft_type": "none"}
    own, shuffled = (
        prepare(name, **settings, shuffle_content=shuffle).model.item_encoder.content_encoder.eval()
        for shuffle in (False, True)
    )
    if name == "MoRec":  # its heads are drawn
        shuffled.heads.load_state_dict(own.heads.state_dict())
    items = torch.arange(81)
    before, after = (encoder(items, None).detach().numpy() for encoder in (own, shuffled))
    assert not before[0].any() and not after[0].any()
    moved = [np.abs(after - row).sum(1).argmin() for row in before[1:]]
    assert sorted(moved) == list(range(1, 81)) and (np.array(moved) != np.arange(1, 81)).mean() > 0.9
