"""Ranking of sampled candidates: exact among themselves, and blind to the place of the right one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.vip5 import ranking
from recbole_perpeft.models.vip5.names import random_ranks
from recbole_perpeft.models.vip5.prompts import Sample
from recbole_perpeft.models.vip5.ranking import CandidateLists, beam_scores, candidate_scores, exact_scores
from recbole_perpeft.models.vip5.trie import ItemTrie
from recbole_perpeft.runs.run import run

N_SAMPLED = 20
SAMPLED = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": f"uni{N_SAMPLED}"}}
RANKED = {"task_weights": {"sequential": 1.0, "direct": 1.0}, "adapter_init": "uniform"}


def encoded_prompts(model, n=3):
    users = torch.arange(1, n + 1)
    history = torch.tensor([[0, 5, 9], [7, 8, 3], [0, 0, 2]])
    return model.network.encode(model.writer.write(model.templates["A-3"], Sample(users, users, history)))


@torch.no_grad()
@pytest.mark.parametrize("names", ["code", "atomic", "digits", "three levels"])
def test_scores_of_candidates_are_those_of_the_whole_tree(prepare_vip5, names):
    id_scheme = "code" if names == "three levels" else names
    model = prepare_vip5(id_scheme=id_scheme, **RANKED).model.eval()
    if names == "three levels":  # the second and third tokens are real choices
        number = np.arange(model.n_items - 1)
        deeper = np.stack([number // 25, number // 5 % 5, number % 5], axis=1)
        model.network.trie = ItemTrie(deeper, model.network.trie.n_tokens)
        model.network.new_tokens.weight.mul_(20.0)
    encoded = encoded_prompts(model)
    candidates = torch.stack([torch.randperm(model.n_items - 1)[:9] + 1 for _ in range(3)])
    candidates[0, 0], candidates[1, -2:] = 0, 0
    expected = exact_scores(model.network, encoded).gather(1, candidates)
    scores = candidate_scores(model.network, encoded, candidates)
    assert torch.allclose(scores, expected, atol=1e-4)
    wide = beam_scores(model.network, encoded, 10_000, candidates)
    assert torch.allclose(wide.gather(1, candidates), expected, atol=1e-4)
    narrow = beam_scores(model.network, encoded, 2, candidates)
    for row, items in zip(narrow, candidates, strict=True):
        reached = set(row.isneginf().logical_not().nonzero().squeeze(1).tolist())
        assert reached and reached <= set(items.tolist()) - {0}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=40), st.randoms())
def test_lists_hold_each_candidate_once_in_an_order_of_their_own(pairs, random):
    lists = CandidateLists([f"i{number}" for number in range(12)], seed=0)
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    distinct, candidates, row, column = lists(users, items)
    assert torch.equal(distinct[row], users) and torch.equal(candidates[row, column], items)
    for user, some in zip(distinct.tolist(), candidates.tolist(), strict=True):
        listed = [item for item in some if item]
        assert some == listed + [0] * (len(some) - len(listed))
        assert sorted(listed) == sorted({item for one, item in pairs if one == user})
    shuffled = random.sample(pairs, len(pairs))
    again = lists(*(torch.tensor(values) for values in zip(*shuffled, strict=True)))
    assert torch.equal(again[0], distinct) and torch.equal(again[1], candidates)


def test_lists_are_in_no_order_of_names():
    tokens = [f"i{number}" for number in range(1000)]
    items = torch.arange(1, 1001)
    _, candidates, *_ = CandidateLists(tokens, seed=0)(torch.ones_like(items), items)
    listed = torch.from_numpy(random_ranks(tokens, 0))[candidates[0] - 1]
    assert abs(torch.corrcoef(torch.stack([listed, items]).double())[0, 1]) < 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", ["B-5", "B-8", "B-1", "A-7", "A-9"])
@pytest.mark.parametrize("decode", ["exact", "beam"])
def test_the_place_of_a_row_changes_nothing(prepare_vip5, name, decode):
    prepared = prepare_vip5(candidates_prompt=name, decode=decode, beam_size=10, **RANKED, **SAMPLED)
    model = prepared.model.eval()
    batch = next(iter(prepared.test_data))[0]
    scores = model.predict(batch)
    order = torch.randperm(len(batch))
    assert torch.allclose(model.predict(batch[order]), scores[order], atol=1e-5)
    # RecBole puts the right item first, which must not help an untrained model.
    of_user = scores.view(-1, N_SAMPLED + 1)
    above = (of_user[:, :1] > of_user[:, 1:]).float() + 0.5 * (of_user[:, :1] == of_user[:, 1:])
    assert 0.4 < above.mean() < 0.6


@torch.no_grad()
def test_lists_compete_with_their_own_candidates_alone(prepare_vip5):
    prepared = prepare_vip5(candidates_prompt="B-5", score_batch_size=7, **RANKED, **SAMPLED)
    model, batch = prepared.model.eval(), next(iter(prepared.test_data))[0]
    scores = model.predict(batch)
    for user in batch["user_id"].unique()[:5]:
        rows = batch["user_id"] == user
        items, place = batch["item_id"][rows].unique(return_inverse=True)
        once = torch.zeros(len(items)).scatter_(0, place, scores[rows])
        assert once.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        alone = model.predict(batch[rows.nonzero().squeeze(1)])
        assert torch.allclose(alone, scores[rows], atol=1e-5)


@torch.no_grad()
def test_questions_score_by_yes_over_no(prepare_vip5):
    prepared = prepare_vip5(candidates_prompt="B-1", **RANKED, **SAMPLED)
    model, batch = prepared.model.eval(), next(iter(prepared.test_data))[0][:4]
    prompt = model.writer.write(model.templates["B-1"], Sample(batch["user_id"], batch["item_id"]))
    logits = model.network.backbone.model(
        inputs_embeds=model.network.prompt_vectors(prompt),
        attention_mask=prompt.mask.long(),
        decoder_input_ids=torch.zeros(4, 1, dtype=torch.long),
    ).logits[:, 0]
    yes, no = model.network.backbone.tokenizer.convert_tokens_to_ids(["▁yes", "▁no"])
    assert torch.allclose(model.predict(batch), logits[:, yes] - logits[:, no], atol=1e-4)


def test_a_run_with_listed_candidates(aspects_settings):
    tiny = {"tiny_width": 16, "tiny_inner_width": 32, "tiny_heads": 2, "tiny_layers": 1, "n_candidates": 4}
    settings = aspects_settings | tiny | SAMPLED | {"epochs": 1, "task_weights": {"sequential": 1.0, "direct": 1.0}}
    result = run("VIP5", "aspects", None, settings | {"candidates_prompt": "B-5"}, saved=False)
    assert 0 < result["test_result"]["hit@10"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates_prompt": "B-5"}, "B-5 lists sampled candidates, of which there are none in a full ranking"),
        ({"candidates_prompt": "B-5", "eval_batch_size": 20} | SAMPLED, "20 cuts the 21 candidates of a user"),
        ({"candidates_prompt": "C-3"} | SAMPLED, "'C-3' asks for no item"),
        (
            {"candidates_prompt": "B-5"} | {"eval_args": SAMPLED["eval_args"] | {"split": {"RS": [8, 1, 1]}}},
            "he may have several lists",
        ),
        ({"candidates_prompt": "B-5", "max_input_tokens": 60} | SAMPLED, "B-5 needs .* tokens"),
        ({"loss_type": "BPR"}, "loss_type is 'BPR'"),
    ],
)
def test_impossible_rankings_are_refused(prepare_vip5, change, message):
    with pytest.raises(PerPEFTError, match=message):
        prepare_vip5(**{"task_weights": {"sequential": 1.0}} | change)


def test_ranking_with_an_untrained_group_warns(prepare_vip5, caplog):
    prepare_vip5(candidates_prompt="B-5", task_weights={"sequential": 1.0}, **SAMPLED)
    assert "B-5 belongs to the group direct, which is not trained" in caplog.text


def test_exact_scoring_of_many_positions_warns(prepare_vip5, monkeypatch, caplog):
    monkeypatch.setattr(ranking, "_MANY_NODES", 50)
    prepare_vip5(**RANKED, id_scheme="code")  # 80 items: 1 + 9 positions
    prepare_vip5(**RANKED, id_scheme="digits", decode="beam")
    assert "positions a prompt" not in caplog.text
    prepare_vip5(**RANKED, id_scheme="digits")
    assert "exact reads 81 positions a prompt" in caplog.text


def test_no_negatives_are_drawn_by_the_loader(prepare_vip5):
    batch = next(iter(prepare_vip5(task_weights={"sequential": 1.0}).train_data))
    assert "pos_item_id_list" in batch and "neg_item_id_list" not in batch
