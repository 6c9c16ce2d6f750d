from dataclasses import replace

import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.side_content import SideContent
from recbole_perpeft.nn.side_network import SideNetworkSettings

N_ITEMS = 9  # the pad included
SETTINGS = SideNetworkSettings(side_rank_text=3, side_rank_image=2, side_init_std=0.3, hidden_size=4, head="narrow")


class RandomStates:
    """Hidden states of random items, whose rows are in an order of their own; keeps what was asked for."""

    def __init__(self, width, n_states, seed, dtype=torch.float16):
        self.width, self.n_states, self.fingerprint = width, n_states, f"states{seed}"
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(N_ITEMS - 1, n_states, width, generator=generator).to(dtype)
        self.order = torch.randperm(N_ITEMS - 1, generator=generator)
        self.asked = []

    def rows_of(self, item_tokens):
        return torch.tensor([-1 if token == "[PAD]" else int(self.order[int(token) - 1]) for token in item_tokens])

    def states(self, rows):
        assert rows.device.type == "cpu" and (rows >= 0).all()
        self.asked.append(len(rows))
        return self.table[rows]


TOKENS = ["[PAD]", *(str(number) for number in range(1, N_ITEMS))]


def make_content(settings=SETTINGS, sources=None):
    torch.manual_seed(0)
    sources = [RandomStates(6, 4, 1), RandomStates(5, 3, 2)] if sources is None else sources
    return SideContent(sources, [source.rows_of(TOKENS) for source in sources], settings)


def plain(content, items, group):
    """One item after the other."""
    network = content.networks["global" if group is None else str(group)]
    vectors = []
    for item in items:
        if item == 0:
            vectors.append(torch.zeros(content.content_size))
        else:
            states = [source.table[source.order[item - 1]].float().unsqueeze(0) for source in content.sources]
            vectors.append(network(states)[0])
    return torch.stack(vectors)


@pytest.mark.parametrize("items", [[0, 3, 1, 8], [5], [0, 0], [2, 2, 0]])
def test_content_of_items_and_zero_for_the_pad(items):
    content = make_content()
    result = content(torch.tensor(items), None)
    assert result.shape == (len(items), content.content_size) and result.dtype == torch.float32
    torch.testing.assert_close(result, plain(content, items, None))


def test_states_of_pads_are_not_read():
    content = make_content()
    content(torch.tensor([0, 3, 0, 4]), None)
    assert [source.asked for source in content.sources] == [[2], [2]]


def test_one_tower():
    content = make_content(replace(SETTINGS, modality="intra"), [RandomStates(6, 4, 1)])
    assert content.content_size == 4 and content.foundation_fingerprint == "states1"
    torch.testing.assert_close(content(torch.tensor([0, 2]), None), plain(content, [0, 2], None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_take_the_type_of_the_weights(dtype):
    content = make_content().to(dtype)
    assert content(torch.tensor([0, 1]), None).dtype == dtype


def test_gradients_reach_the_network_of_the_group_alone():
    content = make_content()
    content.networks.personalise(2)
    content(torch.tensor([0, 3, 1]), 1).sum().backward()
    assert all(parameter.grad is not None for parameter in content.parameters_of(1))
    assert all(parameter.grad is None for group in (None, 0) for parameter in content.parameters_of(group))


def test_groups_start_as_the_global_network_and_part():
    content, items = make_content(), torch.arange(N_ITEMS)
    expected = content(items, None)
    content.networks.personalise(3)
    with torch.no_grad():
        for parameter in content.parameters_of(1):
            parameter.add_(0.5)
    assert torch.equal(content(items, None), expected) and torch.equal(content(items, 0), expected)
    assert not torch.allclose(content(items, 1)[1:], expected[1:])
    torch.testing.assert_close(content(items, 1), plain(content, items.tolist(), 1))


@pytest.mark.parametrize("n_groups", [1, 4, 12])
def test_personalised_again(n_groups):
    content = make_content()
    content.networks.personalise(3)
    with torch.no_grad():
        for parameter in (*content.parameters_of(None), *content.parameters_of(0)):
            parameter.add_(torch.rand_like(parameter))
    content.networks.personalise(n_groups)
    assert set(content.networks) == {"global", *map(str, range(n_groups))}
    for group in range(n_groups):
        for ours, parent in zip(content.parameters_of(group), content.parameters_of(None), strict=True):
            assert torch.equal(ours, parent) and ours is not parent


def test_new_items_by_token(monkeypatch):
    monkeypatch.setattr("recbole_perpeft.nn.side_content._TOKENS_AT_ONCE", 3)
    content = make_content()
    content.networks.personalise(1)
    tokens = ["4", "1", "[PAD]", "8", "2"]
    torch.testing.assert_close(content.encode_tokens(tokens, 0), plain(content, [4, 1, 0, 8, 2], 0))
    assert content.sources[0].asked[:2] == [2, 2]


def test_parameter_groups_have_the_names_of_the_module():
    content = make_content()
    content.networks.personalise(2)
    groups = content.parameter_groups()
    assert list(groups) == [name for name, _ in content.named_parameters()]
    for group in ("global", "0", "1"):
        assert groups[f"networks.{group}.intra.image.blocks.0.down.weight"] == "side_image"


def test_state_dict_holds_what_is_trained_alone():
    content = make_content()
    content.networks.personalise(1)
    assert set(content.state_dict()) == {name for name, _ in content.named_parameters()}
    other = make_content()
    other.networks.personalise(1)
    with torch.no_grad():
        for parameter in content.parameters():
            parameter.add_(1.0)
    other.load_state_dict(content.state_dict())
    assert torch.equal(other(torch.arange(N_ITEMS), 0), content(torch.arange(N_ITEMS), 0))


def test_content_of_an_item_encoder():
    encoder = ItemEncoder(make_content(), N_ITEMS, hidden_size=8, chunk_size=4)
    encoder.personalise(2)
    catalogue = encoder.encode_catalogue(1)
    assert catalogue.shape == (N_ITEMS, 8) and encoder.foundation_fingerprint == "states1-states2"
    torch.testing.assert_close(catalogue[[2, 0]], encoder(torch.tensor([2, 0]), 1).detach())


def test_towers_without_a_shared_item_are_refused():
    sources = [RandomStates(6, 4, 1), RandomStates(5, 3, 2)]
    rows = [source.rows_of(TOKENS) for source in sources]
    rows[0][5:], rows[1][:5] = -1, -1
    with pytest.raises(PerPEFTError, match="no item has hidden states in all"):
        SideContent(sources, rows, SETTINGS)


def test_an_item_that_a_tower_lacks_is_named():
    sources = [RandomStates(6, 4, 1), RandomStates(5, 3, 2)]
    rows = [source.rows_of(TOKENS) for source in sources]
    rows[1][[4, 7]] = -1
    with pytest.raises(PerPEFTError, match="2 items .* item number 4 among them, which tower 1 lacks"):
        SideContent(sources, rows, SETTINGS)


def test_rows_of_other_items_are_refused():
    sources = [RandomStates(6, 4, 1), RandomStates(5, 3, 2)]
    rows = [source.rows_of(TOKENS) for source in sources]
    with pytest.raises(PerPEFTError, match=r"rows for \[9, 4\] items"):
        SideContent(sources, [rows[0], rows[1][:4]], SETTINGS)
    with pytest.raises(PerPEFTError, match="2 caches"):
        SideContent(sources, rows[:1], SETTINGS)


def test_a_single_tower_has_no_inter_modal_network():
    with pytest.raises(PerPEFTError, match="modality: intra_inter needs the states of two towers"):
        make_content(sources=[RandomStates(6, 4, 1)])
