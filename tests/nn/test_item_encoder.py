import numpy as np
import pytest
import torch
from torch.nn import functional

from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.methods import PeftMethod
from recbole_perpeft.nn.content import AdaptedContent, FrozenContent
from recbole_perpeft.nn.item_encoder import ItemEncoder, Projector
from recbole_perpeft.pretrained.dual import FoundationModel

N_ITEMS = 12  # the pad included


class RandomSource:
    """Inputs of random items. Rows are in the opposite order of the items."""

    fingerprint = "random"

    def __init__(self, n_rows: int = N_ITEMS - 1, seed: int = 0):
        self.n_rows = n_rows
        self.sizes = []
        generator = torch.Generator().manual_seed(seed)
        self._pixels = torch.randint(0, 256, (n_rows, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self._ids = torch.randint(4, 17, (n_rows, 12), generator=generator)
        self._ids[:, 0], self._ids[:, 6], self._ids[:, 7:] = 2, 3, 0

    def rows_of(self, item_tokens):
        return torch.tensor([-1, *range(len(item_tokens) - 2, -1, -1)])

    def text_lengths(self, rows):
        return (self._ids[rows] != 0).sum(1)

    def batch(self, rows):
        assert rows.device.type == "cpu"
        self.sizes.append(len(rows))
        ids = self._ids[rows]
        return {"pixel_values": self._pixels[rows], "input_ids": ids, "attention_mask": (ids != 0).long()}


class OneRow(RandomSource):
    """Knows one token."""

    def __init__(self, row: int):
        super().__init__()
        self._row = row

    def rows_of(self, item_tokens):
        return torch.tensor([self._row])


class CountingFoundation(FoundationModel):
    """Counts the items that pass through."""

    n_items = 0

    def forward(self, pixel_values, input_ids, attention_mask=None):
        type(self).n_items += len(input_ids)
        return super().forward(pixel_values, input_ids, attention_mask)


ROW_OF_ITEM = RandomSource().rows_of(range(N_ITEMS))


@pytest.fixture
def make_adapted(tiny_clip):
    def make(chunk_size=4, **options) -> ItemEncoder:
        torch.manual_seed(0)
        bank = AdapterBank(
            FoundationModel(tiny_clip()), PeftMethod("lora", {"lora_dropout": options.pop("dropout", 0.1)})
        )
        content = AdaptedContent(bank, RandomSource(), ROW_OF_ITEM, chunk_size, **options)
        return ItemEncoder(content, N_ITEMS, hidden_size=8, chunk_size=5)

    return make


@pytest.fixture
def make_frozen(tiny_clip, tmp_path):
    def make(source=None, inputs_fingerprint="inputs") -> ItemEncoder:
        torch.manual_seed(0)
        content = FrozenContent(
            lambda: CountingFoundation(tiny_clip()),
            source or RandomSource(),
            ROW_OF_ITEM,
            tmp_path,
            inputs_fingerprint,
            4,
        )
        return ItemEncoder(content, N_ITEMS, hidden_size=8, chunk_size=5)

    CountingFoundation.n_items = 0
    return make


def _plain(encoder: ItemEncoder, tiny_clip, items: torch.Tensor) -> torch.Tensor:
    """Content of a model without adapters, item by item."""
    foundation, source = FoundationModel(tiny_clip()), RandomSource()
    rows = [
        foundation(**source.batch(ROW_OF_ITEM[item : item + 1])) if item else torch.zeros(1, foundation.content_size)
        for item in items.tolist()
    ]
    vectors = 0.5 * encoder.projectors["global"](torch.cat(rows))
    return vectors + functional.embedding(items, encoder.id_embedding.weight)


@pytest.mark.parametrize("kind", ["make_adapted", "make_frozen"])
@pytest.mark.parametrize("items", [[3, 0, 7, 1, 11, 2], [0], [5]])
def test_vector_is_projected_content_plus_id(request, tiny_clip, kind, items):
    encoder = request.getfixturevalue(kind)().eval()
    items = torch.tensor(items)
    torch.testing.assert_close(encoder(items, None), _plain(encoder, tiny_clip, items), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["make_adapted", "make_frozen"])
def test_catalogue_is_all_items_in_evaluation_mode(request, kind):
    encoder = request.getfixturevalue(kind)()
    encoder.personalise(2)
    with torch.no_grad():
        for parameter in encoder.projectors["1"].parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = encoder.eval()(torch.arange(N_ITEMS), 1)
    for training in (True, False):
        encoder.train(training)
        catalogue = encoder.encode_catalogue(1)
        assert not catalogue.requires_grad
        assert encoder.training is training
        assert all(projector.training is training for projector in encoder.projectors.values())
        torch.testing.assert_close(catalogue, expected, atol=1e-6, rtol=1e-5)
    assert (encoder.encode_catalogue(None) - expected).abs().max() > 1e-3


def test_training_mode_comes_back_after_an_error(make_adapted, monkeypatch):
    encoder = make_adapted().train()
    monkeypatch.setattr(encoder.content_encoder.source, "batch", lambda rows: {}["gone"])
    with pytest.raises(KeyError):
        encoder.encode_catalogue(None)
    assert encoder.training


def test_items_pass_in_chunks_and_the_pad_does_not(make_adapted):
    encoder = make_adapted(chunk_size=4)
    encoder(torch.arange(N_ITEMS), None)
    assert encoder.content_encoder.source.sizes == [4, 4, 3]


def test_chunk_size_does_not_matter(make_adapted):
    items = torch.tensor([4, 9, 0, 1, 2])
    torch.testing.assert_close(make_adapted(1).eval()(items, None), make_adapted(64).eval()(items, None))


def test_gradient_checkpointing_gives_the_same_gradients(make_adapted):
    gradients = []
    for checkpointing in (False, True):
        encoder = make_adapted(gradient_checkpointing=checkpointing).train()
        encoder.personalise(2)
        torch.manual_seed(3)  # for dropout
        (encoder(torch.arange(N_ITEMS), 1) * torch.linspace(-1, 1, 8)).sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert any("lora_A" in name for name in plain)
    assert all(".1." in name or name.startswith("id_embedding") for name in plain)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name])


def test_gradient_checkpointing_keeps_fewer_activations(make_adapted):
    kept = []
    for checkpointing in (False, True):
        encoder = make_adapted(gradient_checkpointing=checkpointing).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, s=sizes: s.append(tensor.numel()) or tensor, lambda t: t
        ):
            encoder(torch.arange(N_ITEMS), None)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 10


def test_only_the_group_at_work_gets_gradients(make_adapted):
    encoder = make_adapted().train()
    encoder.personalise(3)
    encoder(torch.tensor([1, 2, 5]), 2).square().sum().backward()
    touched = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert touched
    assert all(
        name.startswith(("projectors.2.", "content_encoder.bank.modules_of_groups.2.", "id_embedding."))
        for name in touched
    )
    assert encoder.id_embedding.weight.grad[0].abs().sum() == 0


def test_personalise_copies_the_global_projector(make_adapted):
    encoder = make_adapted().eval()
    encoder.personalise(3)
    encoder.personalise(2)
    assert list(encoder.projectors) == ["global", "0", "1"]
    torch.testing.assert_close(encoder.encode_catalogue(1), encoder.encode_catalogue(None), atol=0, rtol=0)
    ids = [id(parameter) for parameter in encoder.parameters()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("kind", ["make_adapted", "make_frozen"])
def test_checkpoint_round_trip(request, kind):
    make = request.getfixturevalue(kind)
    encoder, other = make().eval(), make().eval()
    for one in (encoder, other):
        one.personalise(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = encoder.state_dict()
    assert not any("base_layer" in name or "embeddings.patch" in name for name in state)
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(other.encode_catalogue(1), encoder.encode_catalogue(1), atol=0, rtol=0)


def test_vectors_are_float32_under_autocast(make_adapted):
    encoder = make_adapted()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(torch.tensor([1, 2]), None).dtype == torch.float32


@pytest.mark.parametrize("kind", ["make_adapted", "make_frozen"])
def test_new_item_has_the_content_part_alone(request, kind):
    encoder = request.getfixturevalue(kind)().eval()
    expected = encoder(torch.tensor([4]), None) - encoder.id_embedding.weight[4]
    encoder.content_encoder.source = OneRow(int(ROW_OF_ITEM[4]))
    torch.testing.assert_close(encoder.new_item_vectors(["new"], None), expected, atol=1e-5, rtol=1e-5)


def files_in(folder):
    """Arrays, without their locks and checksums."""
    return [path for path in folder.iterdir() if path.suffix not in (".lock", ".json")]


def test_frozen_content_is_computed_once(make_frozen, tmp_path):
    probes = 3  # a model encodes one blank item when it is made
    first = make_frozen().eval().encode_catalogue(None)
    assert CountingFoundation.n_items == N_ITEMS - 1 + 1
    for _ in range(probes - 1):
        torch.testing.assert_close(make_frozen().eval().encode_catalogue(None), first, atol=0, rtol=0)
    assert CountingFoundation.n_items == N_ITEMS - 1 + probes
    assert [path.name[:15] for path in files_in(tmp_path)] == ["content-vectors"]
    assert all(parameter.requires_grad for parameter in make_frozen().parameters()), "no foundation model is held"


def test_frozen_content_of_other_inputs_is_computed_anew(make_frozen, tmp_path):
    first = make_frozen()(torch.tensor([1]), None)
    second = make_frozen(RandomSource(seed=1), "other inputs")(torch.tensor([1]), None)
    assert not torch.allclose(first, second)
    assert len(files_in(tmp_path)) == 2


def test_frozen_content_is_whole_or_not_there(make_frozen, tmp_path, monkeypatch):
    source = RandomSource()
    whole = source.batch
    monkeypatch.setattr(source, "batch", lambda rows: whole(rows) if rows[0] < 8 else {}["killed"])
    with pytest.raises(KeyError):
        make_frozen(source)
    assert files_in(tmp_path) == []


def test_frozen_content_does_not_change_its_file(make_frozen, tmp_path):
    encoder = make_frozen()
    (file,) = files_in(tmp_path)
    before = file.read_bytes()
    encoder.content_encoder(torch.arange(N_ITEMS), None).mul_(2)
    assert file.read_bytes() == before
    assert np.load(file).dtype == np.float32


def test_layers_of_the_projector_are_those_of_the_paper():
    torch.manual_seed(0)
    projector = Projector(6, 4)
    content = torch.randn(5, 6)
    first, _, _, last, _ = projector
    hidden = functional.relu(functional.layer_norm(first(content), (8,), eps=1e-8))
    torch.testing.assert_close(projector(content), functional.layer_norm(last(hidden), (4,), eps=1e-8))


def test_size_of_the_projector_is_that_of_the_paper():
    assert sum(parameter.numel() for parameter in Projector(1024, 32).parameters()) == 67_872


def test_pad_becomes_a_constant_that_is_not_zero():
    vectors = Projector(6, 4)(torch.zeros(2, 6))
    assert torch.equal(vectors[0], vectors[1])
    assert vectors.abs().sum() > 0
