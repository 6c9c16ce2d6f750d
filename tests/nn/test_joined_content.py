"""Content of several towers."""

import torch
from torch.nn import functional

from recbole_perpeft.nn.adapt.groups import personalise
from recbole_perpeft.nn.joined_content import ContentHeads, JoinedContent, StoredVectors, UnitVectors


class Stored:
    """Vectors of four items, in half precision."""

    def __init__(self, width, fingerprint="f"):
        self.width, self.fingerprint = width, fingerprint
        self.vectors = torch.randn(4, width, generator=torch.Generator().manual_seed(width)).half()

    def rows_of(self, item_tokens):
        return torch.tensor([-1 if token == "[PAD]" else int(token) for token in item_tokens])

    def final(self, rows):
        return self.vectors[rows]


def stored_content(sources, item_tokens, **sizes):
    towers = {role: StoredVectors(source, item_tokens) for role, source in sources.items()}
    return JoinedContent(towers, ContentHeads({role: source.width for role, source in sources.items()}, **sizes))


def test_heads_on_stored_vectors():
    sources = {"text": Stored(6), "image": Stored(10)}
    content = stored_content(sources, ["[PAD]", "2", "0", "3"], head_size=5)
    vectors = content(torch.tensor([1, 0, 3, 3]), None)
    assert vectors.shape == (4, content.content_size) == (4, 10) and vectors.dtype == torch.float32
    for position, row in ((0, 2), (2, 3), (3, 3)):
        for place, kind in enumerate(("image", "text")):
            head = content.heads[kind][0]
            weight, bias = head.weight.detach().double(), head.bias.detach().double()
            expected = functional.gelu(weight @ sources[kind].vectors[row].double() + bias)
            torch.testing.assert_close(
                vectors[position, 5 * place : 5 * place + 5].double(), expected, atol=1e-6, rtol=0
            )
    assert not vectors[1].any()
    torch.testing.assert_close(content.encode_tokens(["2"], None), vectors[:1])
    vectors.sum().backward()
    assert set(content.state_dict()) == {name for name, _ in content.named_parameters()}
    assert set(content.parameter_groups()) == set(), "all have the rate of the recommender"
    assert all(parameter.grad is not None for parameter in content.parameters())
    personalise(content, 2)
    assert torch.equal(content(torch.tensor([1, 0, 3, 3]), 1), vectors)


def test_stored_vectors_of_one_kind_and_their_fingerprint():
    tokens = ["[PAD]", "1"]
    text = stored_content({"text": Stored(6)}, tokens)
    assert text.content_size == 64
    assert text.foundation_fingerprint == stored_content({"text": Stored(6)}, tokens).foundation_fingerprint
    others = ({"image": Stored(6)}, {"text": Stored(6, "g")})
    assert all(stored_content(o, tokens).foundation_fingerprint != text.foundation_fingerprint for o in others)


def test_parameter_count_of_the_frozen_baseline():
    model = stored_content({"text": Stored(768), "image": Stored(768)}, ["[PAD]", "0"])
    assert sum(parameter.numel() for parameter in model.parameters()) + 100_224 + 8_256 == 206_912


def test_unit_vectors_come_images_first_and_pads_stay_zero():
    sources, tokens = {"text": Stored(6), "image": Stored(10)}, ["[PAD]", "2", "0"]
    towers = {role: StoredVectors(source, tokens) for role, source in sources.items()}
    content = JoinedContent(towers, UnitVectors({role: source.width for role, source in sources.items()}))
    vectors = content(torch.tensor([2, 0]), None)
    assert vectors.dtype == torch.float32 and not vectors[1].any()
    image, text = (sources[role].vectors[0].double() for role in ("image", "text"))
    torch.testing.assert_close(vectors[0].double(), torch.cat([image / image.norm(), text / text.norm()]))
    torch.testing.assert_close(content.encode_tokens(["0"], None), vectors[:1])
    assert not content.state_dict()


class Sided(StoredVectors):
    """A tower of texts that trains something."""

    def parameter_groups(self):
        return {"a": "side_text", "b": "backbone_text", "c": "recsys"}


def test_a_tower_has_the_rates_of_its_role():
    towers = {"image": Sided(Stored(6), ["[PAD]", "1"])}
    content = JoinedContent(towers, UnitVectors({"image": 6}))
    groups = {"a": "side_image", "b": "backbone_image", "c": "recsys"}
    assert content.parameter_groups() == {f"towers.image.{name}": group for name, group in groups.items()}
