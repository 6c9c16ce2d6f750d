"""Relevance by attention against models whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.studies.explore.looks import patch_grid, words_with_shares
from recbole_perpeft.studies.explore.relevance import relevance
from support.versions import shows_attention

END, DECIDES = 15, 7
TEXT = {"input_ids": torch.tensor([[1, 4, DECIDES, 5, END], [1, DECIDES, 6, 5, END], [1, 4, 6, 5, END]])}


def a_clip(layers=1):
    torch.manual_seed(0)
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2}
    text = width | {"vocab_size": 16, "max_position_embeddings": 5, "eos_token_id": END, "bos_token_id": 1}
    vision = width | {"image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval().requires_grad_(False)


def text_vectors(model):
    def encode(input_ids):
        features = model.get_text_features(input_ids=input_ids)
        return getattr(features, "pooler_output", features)

    return encode


def decided_by_one_token():
    """A text tower in which token 7 alone brings what is scored: attention is uniform, values are one direction."""
    model = a_clip()
    tower = model.text_model
    tower.embeddings.position_embedding.weight.zero_()
    tower.embeddings.token_embedding.weight.copy_(torch.eye(8).repeat(2, 1))  # tokens 7 and 15 share a direction
    tower.embeddings.token_embedding.weight[END] = torch.eye(8)[0]
    block = tower.encoder.layers[0]
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(block.self_attn, name).weight.zero_()
        getattr(block.self_attn, name).bias.zero_()
    block.self_attn.v_proj.weight[DECIDES, DECIDES] = 1.0
    block.self_attn.out_proj.weight.copy_(torch.eye(8))
    block.mlp.fc2.weight.zero_()
    model.text_projection.weight.copy_(torch.eye(8))
    return model


@shows_attention
def test_a_token_that_alone_decides_gets_the_relevance():
    model = decided_by_one_token()
    shares = relevance(model, ("text",), text_vectors(model), lambda vectors: vectors[:, DECIDES], TEXT)["text"]
    expected = torch.tensor([[0.0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(shares, expected, atol=1e-6, rtol=0)
    # What the causal mask hides from the end token's place cannot matter.
    first = {"input_ids": torch.tensor([[1, END, DECIDES, DECIDES, DECIDES]])}
    assert relevance(model, ("text",), text_vectors(model), lambda v: v[:, DECIDES], first)["text"].sum() == 0


def naive_shares(model, encode, score, inputs):
    """The equations block by block and head by head, with the attention that transformers returns."""
    seen = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _a, output: seen.append(output[1]))
        for layer in model.text_model.encoder.layers
    ]
    model.text_model.embeddings.token_embedding.weight.requires_grad_()
    model.set_attn_implementation("eager")
    total = score(encode(**inputs)).sum()
    gradients = torch.autograd.grad(total, seen)
    for hook in hooks:
        hook.remove()
    n_tokens = inputs["input_ids"].shape[1]
    rows = []
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        found = torch.eye(n_tokens)
        for attention, gradient in zip(seen, gradients, strict=True):
            mean = sum((attention[row, h] * gradient[row, h]).clamp(min=0) for h in range(2)) / 2
            found = found + mean @ found
        share = (found - torch.eye(n_tokens))[ids.index(END)]
        rows.append(share / share.sum())
    return torch.stack(rows).detach()


@shows_attention
def test_several_blocks_and_heads_equal_the_equations_and_kernels_come_back():
    model = a_clip(layers=3)
    for parameter in model.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    direction = torch.randn(8)
    before = model.config._attn_implementation
    encode, score = text_vectors(model), lambda vectors: vectors @ direction
    shares = relevance(model, ("text",), encode, score, TEXT)["text"]
    assert model.config._attn_implementation == before
    torch.testing.assert_close(shares, naive_shares(model, encode, score, TEXT), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))


def test_a_tower_that_is_not_asked_shows_no_attention():
    model = a_clip()
    with pytest.raises(PerPEFTError, match="the image encoder of CLIPModel does not show its attention"):
        relevance(model, ("image",), text_vectors(model), lambda vectors: vectors[:, 0], TEXT)


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=4), min_size=0, max_size=6),
    data=st.data(),
)
@settings(max_examples=50)
def test_words_get_the_shares_of_their_tokens(words, data):
    title, offsets, expected, shares = "  ".join(words), [(0, 0)], [], [0.3]
    place = 0
    for word in words:
        cut = data.draw(st.integers(0, len(word) - 1))
        pieces = [(place, place + cut), (place + cut, place + len(word))] if cut else [(place, place + len(word))]
        drawn = [data.draw(st.floats(0, 1)) for _ in pieces]
        offsets, shares, expected = offsets + pieces, shares + drawn, [*expected, sum(drawn)]
        place += len(word) + 2
    found = words_with_shares(title, np.array(shares), np.array(offsets))
    total = sum(expected)
    assert [word for word, _ in found] == words
    assert [share for _, share in found] == pytest.approx([e / total if total else 0 for e in expected])


def test_patches_leave_out_what_is_before_them():
    shares = np.array([9.0, 1, 2, 3, 4])
    np.testing.assert_allclose(patch_grid(shares), np.array([[1, 2], [3, 4]]) / 10)
    assert patch_grid(np.zeros(4)).sum() == 0
