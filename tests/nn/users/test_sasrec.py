import math

import pytest
import torch
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.users.sasrec import SASRecUserEncoder, UserEncoderSettings, left_pad


def naive_left_pad(rows, length):
    result = torch.zeros_like(rows)
    for b, n in enumerate(length.tolist()):
        for j in range(n):
            result[b, rows.shape[1] - n + j] = rows[b, j]
    return result


def test_left_pad_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(0, 7, (50,), generator=generator)
    rows = torch.randint(1, 99, (50, 6), generator=generator) * (torch.arange(6) < length.unsqueeze(1))
    assert torch.equal(left_pad(rows, length), naive_left_pad(rows, length))


def naive_attention(attention, query, key, n_heads):
    """Per head, per slot, float64; pads are attended to."""
    width = query.shape[-1]
    q_weight, k_weight, v_weight = attention.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = attention.in_proj_bias.chunk(3)
    q, k, v = query @ q_weight.T + q_bias, key @ k_weight.T + k_bias, key @ v_weight.T + v_bias
    head = width // n_heads
    result = torch.zeros_like(query)
    for h in range(n_heads):
        part = slice(h * head, (h + 1) * head)
        for slot in range(query.shape[0]):
            score = torch.stack([q[slot, part] @ k[s, part] / math.sqrt(head) for s in range(slot + 1)])
            result[slot, part] = sum(w * v[s, part] for s, w in enumerate(score.softmax(0)))
    return result @ attention.out_proj.weight.T + attention.out_proj.bias


def naive_user_encoder(encoder, vectors, item_seq, n_heads):
    """The formulas of the specification for one user, slot by slot."""
    position = [slot + 1 if item else 0 for slot, item in enumerate(item_seq.tolist())]
    hidden = vectors * math.sqrt(vectors.shape[-1]) + encoder.position_embedding.weight[position]
    for block in encoder.blocks:
        query = block.attention_norm(hidden)
        hidden = query + naive_attention(block.attention, query, hidden, n_heads)
        hidden = block.feed_forward_norm(hidden)
        inner = functional.relu(block.feed_forward.linear_1(hidden))
        hidden = hidden + block.feed_forward.linear_2(inner)
    return encoder.last_norm(hidden)


@pytest.mark.parametrize(("width", "n_heads"), [(8, 2), (12, 4)])
def test_user_encoder_equals_a_loop(width, n_heads):
    torch.manual_seed(1)
    settings = UserEncoderSettings(hidden_size=width, n_heads=n_heads)
    encoder = SASRecUserEncoder(settings, max_seq_length=5).double().eval()
    item_seq = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 0, 0, 0, 7]])
    vectors = torch.randn(3, 5, width, dtype=torch.float64)
    result, newest = encoder(vectors, item_seq), encoder.newest(vectors, item_seq)
    for row in range(3):
        expected = naive_user_encoder(encoder, vectors[row], item_seq[row], n_heads)
        torch.testing.assert_close(result[row], expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(newest[row], expected[-1], atol=1e-10, rtol=0)


def test_the_future_is_not_seen():
    torch.manual_seed(2)
    encoder = SASRecUserEncoder(UserEncoderSettings(hidden_size=32), max_seq_length=6).eval()
    item_seq = torch.tensor([[1, 2, 3, 4, 5, 6]])
    vectors = torch.randn(1, 6, 32)
    before = encoder(vectors, item_seq)
    vectors[0, 4:] += 1.0
    after = encoder(vectors, item_seq)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("n_layers", 0),
        ("n_heads", 0),
        ("n_heads", 5),
        ("dropout_prob", 1.0),
        ("dropout_prob", -0.1),
    ],
)
def test_wrong_sizes_name_the_key(key, value):
    with pytest.raises(PerPEFTError, match=key):
        UserEncoderSettings(**{key: value})
