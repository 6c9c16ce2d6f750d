"""Scores of the catalogue: equal to teacher forcing, exact, independent of the batch."""

import pytest
import torch
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.vip5.prompts import Sample
from recbole_perpeft.models.vip5.ranking import beam_scores, exact_scores
from recbole_perpeft.models.vip5.trie import ItemTrie


def encoded_batch(prepared, n=6):
    model = prepared.model.eval()
    batch = next(iter(prepared.valid_data))[0][:n]
    return model, batch


def teacher_forced(model, encoded):
    """Log-probability of each item by forcing its name, one item at a time."""
    items = range(1, model.n_items)
    n_rows = len(encoded.states)
    columns = [
        model.network.item_log_probabilities(encoded, torch.full((n_rows,), item))[0].sum(dim=1) for item in items
    ]
    return torch.stack(columns, dim=1)


def prompts_of(model, batch):
    sample = Sample(batch["user_id"], batch["user_id"], history=batch["item_id_list"])
    return model.network.encode(model.writer.write(model.templates["A-3"], sample))


@torch.no_grad()
@pytest.mark.parametrize("id_scheme", ["code", "atomic", "digits"])
def test_exact_scores_are_teacher_forcing_and_sum_to_one(prepare_vip5, id_scheme):
    prepared = prepare_vip5(id_scheme=id_scheme, adapter_init="uniform", task_weights={"sequential": 1.0})
    model, batch = encoded_batch(prepared, 3)
    encoded = prompts_of(model, batch)
    scores = exact_scores(model.network, encoded)
    assert scores.shape == (3, model.n_items) and scores[:, 0].isneginf().all()
    assert torch.allclose(scores[:, 1:], teacher_forced(model, encoded), atol=1e-4)
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(3), atol=1e-5)
    # Cut into chunks, and by a beam that keeps everything.
    whole = model.network.trie
    names = torch.where(
        whole.item_edges[1:] < whole.n_edges, whole.edge_token[whole.item_edges[1:] % whole.n_edges], -1
    )
    model.network.trie = ItemTrie(names.numpy(), whole.n_tokens, chunk_size=5)
    assert len(model.network.trie.chunks) == -(-whole.n_nodes // 5)
    assert torch.allclose(exact_scores(model.network, encoded), scores, atol=1e-4)
    assert torch.allclose(beam_scores(model.network, encoded, 10_000), scores, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("id_scheme", ["code", "digits"])
def test_a_beam_reaches_some_items_with_their_exact_scores(prepare_vip5, id_scheme):
    prepared = prepare_vip5(id_scheme=id_scheme, task_weights={"sequential": 1.0})
    model, batch = encoded_batch(prepared, 3)
    encoded = prompts_of(model, batch)
    exact, beam = exact_scores(model.network, encoded), beam_scores(model.network, encoded, 6)
    reached = ~beam.isneginf()
    assert (reached.sum(dim=1) > 0).all() and (reached.sum(dim=1) <= 6 * model.network.trie.max_length).all()
    assert torch.allclose(beam[reached], exact[reached], atol=1e-4)


@torch.no_grad()
def test_scores_depend_on_their_own_row_alone(prepare_vip5):
    model, batch = encoded_batch(prepare_vip5(adapter_init="uniform"))
    together = model.full_sort_predict(batch)
    alone = torch.cat([model.full_sort_predict(batch[row : row + 1]) for row in range(len(batch))])
    assert torch.allclose(together[:, 1:], alone[:, 1:], atol=1e-4)
    model.ranking.__dict__["score_batch_size"] = 4  # frozen, and read at every call
    assert torch.allclose(model.full_sort_predict(batch)[:, 1:], together[:, 1:], atol=1e-4)


@torch.no_grad()
def test_the_image_of_an_item_matters_to_who_had_it(prepare_vip5):
    model, batch = encoded_batch(prepare_vip5(adapter_init="uniform"))
    before = model.full_sort_predict(batch)
    item = int(batch["item_id_list"][0, 0])
    model.network.visual.features[item] += 3.0
    changed = ((model.full_sort_predict(batch) - before)[:, 1:].abs() > 1e-6).any(dim=1)
    assert torch.equal(changed, (batch["item_id_list"] == item).any(dim=1))


@torch.no_grad()
def test_scores_of_candidates_do_not_depend_on_their_place(prepare_vip5):
    prepared = prepare_vip5(
        eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni50"}, adapter_init="uniform"
    )
    model = prepared.model.eval()
    batch = next(iter(prepared.test_data))[0]
    scores = model.predict(batch)
    order = torch.randperm(len(batch))
    assert torch.allclose(model.predict(batch[order]), scores[order], atol=1e-4)
    full = model.full_sort_predict(batch[:5]).gather(1, batch["item_id"][:5].unsqueeze(1)).squeeze(1)
    assert torch.allclose(scores[:5], full, atol=1e-4)
    # The positive comes first in every user's rows, which must not help an untrained model.
    first = scores.view(-1, 51)
    assert 0.3 < (first[:, :1] > first[:, 1:]).float().mean() < 0.7


@pytest.mark.parametrize(("length_weight", "power"), [("sum", 0), ("mean", 1), ("inverse", 2)])
@pytest.mark.parametrize("softmax_scope", ["names", "vocabulary"])
def test_losses_are_their_formulas(prepare_vip5, softmax_scope, length_weight, power):
    prepared = prepare_vip5(id_scheme="digits", softmax_scope=softmax_scope, length_weight=length_weight)
    model = prepared.model.eval()
    network, items = model.network, torch.tensor([3, 40, 77])
    sample = Sample(torch.tensor([1, 2, 3]), items, torch.tensor([[1], [2], [3]]), rows=torch.tensor([0, 1, 2]))
    prompt = model.writer.write(model.templates["A-1"], sample)
    encoded, losses = network.encode(prompt), []
    for row, item in enumerate(items.tolist()):
        nodes, tokens, exists = (part[0] for part in network.trie.paths(torch.tensor([item])))
        total, n_tokens = 0.0, int(exists.sum())
        for place in range(n_tokens):
            inputs = network.node_vectors(nodes[: place + 1])[None]
            hidden = network.backbone.decode(inputs, encoded.states[row : row + 1], encoded.mask[row : row + 1])[0, -1]
            logits = network.backbone.output_scale * network.backbone.output_weight @ hidden
            own = int(network.item_vocabulary[tokens[place]])
            if softmax_scope == "names":
                edges = slice(*network.trie.first_edge[nodes[place] : nodes[place] + 2].tolist())
                competitors = logits[network.item_vocabulary[network.trie.edge_token[edges]]]
            else:
                names = network.backbone.output_scale * network.new_tokens.weight @ hidden
                competitors = torch.cat([logits, names])
            total -= (logits[own] - competitors.logsumexp(0)).item()
        losses.append(total / n_tokens**power)
    assert network.item_loss(prompt, items).item() == pytest.approx(sum(losses) / 3, abs=1e-4)


def test_loss_of_words_is_the_cross_entropy_of_the_library(prepare_vip5):
    model = prepare_vip5(adapter_init="identity", length_weight="mean").model.eval()
    template = model.templates["C-3"]
    sample = Sample(torch.tensor([1, 2]), torch.tensor([4, 5]), rows=torch.tensor([0, 1]))
    prompt, targets = model.writer.write(template, sample), model.writer.target_words(template, sample)
    labels = targets.masked_fill(targets < 0, -100)
    output = model.network.backbone.model(
        inputs_embeds=model.network.prompt_vectors(prompt), attention_mask=prompt.mask.long(), labels=labels
    )
    rows = functional.cross_entropy(output.logits.transpose(1, 2), labels, reduction="none")
    expected = (rows.sum(dim=1) / (labels >= 0).sum(dim=1)).mean()
    assert model.network.words_loss(prompt, targets).item() == pytest.approx(expected.item(), abs=1e-5)


def test_impossible_ranking_is_refused(prepare_vip5):
    with pytest.raises(PerPEFTError, match="eval_prompt: 'A-7' does not ask for the next item"):
        prepare_vip5(eval_prompt="A-7")
    with pytest.raises(PerPEFTError, match="beam_size is 0"):
        prepare_vip5(beam_size=0)
