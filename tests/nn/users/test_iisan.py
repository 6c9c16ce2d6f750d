import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.users.iisan import IISANUserEncoder, IISANUserEncoderSettings

ITEM_SEQ = torch.tensor([[0, 0, 3, 4, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0, 7]])


def make_encoder(max_seq_length=5, **options):
    """A float64 encoder whose biases and norms are not at their start."""
    torch.manual_seed(0)
    encoder = IISANUserEncoder(IISANUserEncoderSettings(**options), max_seq_length).double().eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return encoder


def plain_norm(norm, x):
    centred = x - x.mean()
    return centred / math.sqrt(float(centred.square().mean()) + 1e-6) * norm.weight + norm.bias


def plain_attention(attention, hidden, real, n_heads):
    """One user: each head, slot by slot, with the additive mask of the authors."""
    length, width = hidden.shape
    size = width // n_heads
    mixed = torch.zeros_like(hidden)
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (hidden @ layer.weight[part].T for layer in (attention.query, attention.key, attention.value))
        for slot in range(length):
            mask = torch.tensor([0.0 if other <= slot and real[other] else -1e9 for other in range(length)])
            weights = torch.softmax(k @ q[slot] / math.sqrt(size) + mask.double(), 0)
            mixed[slot, part] = sum(w * v[other] for other, w in enumerate(weights))
    return mixed @ attention.output.weight.T


@torch.no_grad()
def plain_user_encoder(encoder, vectors, item_seq, n_heads, activation):
    hidden = torch.stack(
        [plain_norm(encoder.norm, v + encoder.position_embedding.weight[slot]) for slot, v in enumerate(vectors)]
    )
    for block in encoder.blocks:
        attended = plain_attention(block.attention, hidden, item_seq != 0, n_heads)
        hidden = torch.stack([plain_norm(block.attention_norm, x) for x in hidden + attended])
        first, _, second = block.feed_forward
        inner = activation(hidden @ first.weight.T + first.bias)
        hidden = hidden + inner @ second.weight.T + second.bias
        hidden = torch.stack([plain_norm(block.feed_forward_norm, x) for x in hidden])
    return hidden


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"hidden_size": 8, "inner_size": 12}, functional.relu),
        ({"hidden_size": 12, "n_heads": 3, "n_layers": 1, "inner_size": 5, "hidden_act": "gelu"}, functional.gelu),
    ],
)
def test_user_encoder_equals_a_loop(options, activation):
    encoder = make_encoder(**options)
    vectors = torch.randn(3, 5, options["hidden_size"], dtype=torch.float64)
    result = encoder(vectors, ITEM_SEQ)
    for row, item_seq in enumerate(ITEM_SEQ):
        expected = plain_user_encoder(encoder, vectors[row], item_seq, options.get("n_heads", 2), activation)
        real = item_seq != 0
        torch.testing.assert_close(result[row][real], expected[real], atol=1e-9, rtol=0)


def test_neither_future_nor_pads_are_seen():
    encoder = make_encoder()
    vectors = torch.randn(3, 5, 64, dtype=torch.float64)
    before = encoder(vectors, ITEM_SEQ)
    changed = vectors.clone()
    changed[ITEM_SEQ == 0] *= -5.0
    changed[:, 4] *= -1.0
    after = encoder(changed, ITEM_SEQ)
    seen = ITEM_SEQ != 0
    seen[:, 4] = False
    torch.testing.assert_close(after[seen], before[seen])
    assert not torch.allclose(after[:, 4], before[:, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pads_do_not_become_nan(dtype):
    encoder = make_encoder().float().train()
    vectors = torch.randn(3, 5, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden = encoder(vectors, ITEM_SEQ)
    hidden[ITEM_SEQ != 0].float().sum().backward()
    assert hidden.isfinite().all() and vectors.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_parameter_count_of_the_authors():
    encoder = IISANUserEncoder(IISANUserEncoderSettings(), max_seq_length=10)
    assert sum(p.numel() for p in encoder.parameters()) == 100_224
    assert not any(name.endswith(("causal", "diagonal")) for name in encoder.state_dict())


def test_start_of_training():
    torch.manual_seed(0)
    encoder = IISANUserEncoder(IISANUserEncoderSettings(), max_seq_length=10)
    assert encoder.position_embedding.weight.std().item() == pytest.approx(math.sqrt(2 / (10 + 64)), rel=0.1)
    block = encoder.blocks[0]
    assert block.attention.query.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.1)
    assert block.feed_forward[0].weight.std().item() == pytest.approx(math.sqrt(2 / 320), rel=0.1)
    assert not block.feed_forward[0].bias.any() and not block.feed_forward[2].bias.any()


def test_dropout_is_on_in_training_only():
    encoder = make_encoder()
    vectors = torch.randn(3, 5, 64, dtype=torch.float64)
    assert torch.equal(encoder(vectors, ITEM_SEQ), encoder(vectors, ITEM_SEQ))
    encoder.train()
    assert not torch.equal(encoder(vectors, ITEM_SEQ), encoder(vectors, ITEM_SEQ))


def test_attention_weights_have_a_dropout_of_their_own():
    encoder = make_encoder(hidden_dropout_prob=0.0, attn_dropout_prob=0.5).train()
    vectors = torch.randn(3, 5, 64, dtype=torch.float64)
    assert not torch.equal(encoder(vectors, ITEM_SEQ), encoder(vectors, ITEM_SEQ))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("n_layers", 0),
        ("n_heads", 0),
        ("n_heads", 3),
        ("inner_size", 0),
        ("hidden_dropout_prob", 1.0),
        ("attn_dropout_prob", -0.1),
        ("hidden_act", "swish"),
        ("layer_norm_eps", 0.0),
    ],
)
def test_wrong_sizes_name_the_key(key, value):
    with pytest.raises(PerPEFTError, match=key):
        IISANUserEncoderSettings(**{key: value})
