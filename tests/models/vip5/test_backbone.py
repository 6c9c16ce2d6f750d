"""The wrapped T5: its library's outputs, published sizes, what is trained, and trees in one pass."""

import pytest
import torch
from transformers import BertConfig, T5Config, T5ForConditionalGeneration

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.vip5.names import token_names
from recbole_perpeft.models.vip5.network import NetworkSettings, VIP5Network
from recbole_perpeft.models.vip5.segments import Prompt
from recbole_perpeft.models.vip5.t5 import BackboneSettings, T5Backbone, tiny_backbone, word_tokenizer
from recbole_perpeft.models.vip5.trie import ItemTrie
from recbole_perpeft.models.vip5.visual import VisualSettings, VisualTokens
from recbole_perpeft.nn.adapt.bottleneck import T5AdapterSettings
from support import small_t5

TEXTS, TINY, make_backbone = small_t5.TEXTS, small_t5.TINY, small_t5.make_backbone

T5_SMALL = {"vocab_size": 32_100, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
T5_BASE = {"vocab_size": 32_100, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}


def paper_network(t5, n_features, n_visual, reduction=8, cross_attention=True):
    """The authors' model: items named in words, random tables."""
    sublayers = ["self_attention", "feed_forward"] + ["cross_attention"] * cross_attention
    tokenizer = word_tokenizer(TEXTS)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**t5))
        model.tie_weights()
        adapters = T5AdapterSettings(adapter_reduction=reduction, adapter_sublayers=sublayers)
        backbone = T5Backbone(model, tokenizer, adapters)
    names = token_names("digits", torch.arange(9).numpy(), tokenizer)
    settings = NetworkSettings(word_tables="random")
    visual_settings = VisualSettings(n_visual_tokens=n_visual, image_features="any.npy")
    visual = VisualTokens(torch.zeros(3, n_features), torch.ones(3, dtype=torch.bool), backbone.width, visual_settings)
    trie = ItemTrie(names.names, names.n_tokens)
    return VIP5Network(backbone, visual, trie, torch.from_numpy(names.words), 0, settings)


@pytest.mark.parametrize(
    ("arguments", "trainable", "total", "share"),
    [
        ((T5_SMALL, 512, 1, 8, False), 1_866_496, 62_874_880, 2.97),
        ((T5_SMALL, 512, 1, 8, True), 2_263_168, 63_271_552, 3.58),
        ((T5_SMALL, 512, 2, 8, True), 2_788_736, 63_797_120, 4.37),
        ((T5_SMALL, 512, 2, 2, True), None, None, 12.47),
        ((T5_SMALL, 512, 2, 32, True), None, None, 2.11),
        ((T5_BASE, 512, 2, 8, True), 10_523_520, 234_156_672, 4.49),
    ],
)
def test_sizes_are_the_published_ones(arguments, trainable, total, share):
    network = paper_network(*arguments)
    counted = {id(parameter): parameter for parameter in network.parameters()}.values()
    n_trainable = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    n_total = sum(parameter.numel() for parameter in counted)
    assert trainable is None or (n_trainable, n_total) == (trainable, total)
    assert round(100 * n_trainable / n_total, 2) == share


def test_adapters_without_effect_leave_the_plain_library_model():
    torch.manual_seed(0)
    plain, tokenizer = tiny_backbone(TEXTS, TINY)
    plain.eval()
    ids = torch.tensor([[5, 6, 7, 1, 0], [8, 9, 3, 4, 1]])
    targets = torch.tensor([[4, 5, 1], [7, 1, 0]])
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=targets).logits
        backbone = T5Backbone(plain, tokenizer, T5AdapterSettings()).eval()
        states = backbone.encode(backbone.word_vectors(ids), ids != 0)
        hidden = backbone.decode(backbone.word_vectors(targets), states, ids != 0)
        logits = hidden * backbone.output_scale @ backbone.output_weight.T
    assert torch.allclose(logits, expected, atol=1e-5)


def test_adapters_change_what_they_follow():
    torch.manual_seed(0)
    plain, tokenizer = tiny_backbone(TEXTS, TINY)
    plain.eval()
    layer = plain.encoder.block[0].layer[1]
    inputs = torch.randn(2, 3, 32)
    before = layer(inputs) - inputs  # what the feed-forward part adds
    T5Backbone(plain, tokenizer, T5AdapterSettings(adapter_init="uniform"))
    adapter = layer.DenseReluDense.wo.adapter
    assert torch.allclose(layer(inputs), inputs + adapter(before), atol=1e-6)
    assert not torch.allclose(adapter(before), before, atol=1e-3)


def test_one_step_moves_the_trainable_set_alone():
    backbone = make_backbone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0, weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 1]])
    states = backbone.encode(backbone.word_vectors(ids), ids > 0)
    backbone.decode(backbone.word_vectors(ids), states, ids > 0).square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in backbone.model.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if "adapter." in name or name.endswith("layer_norm.weight")}
    assert moved == expected
    assert {name.removeprefix("model.") for name in backbone.state_dict()} == expected


def test_a_state_dict_without_frozen_weights_brings_everything_back():
    first, second = make_backbone(), make_backbone()
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.fingerprint == second.fingerprint != make_backbone(seed=1).fingerprint
    torch.manual_seed(0)
    model, tokenizer = tiny_backbone(TEXTS, TINY)
    model.config.layer_norm_epsilon = 1e-3
    other = T5Backbone(model, tokenizer, T5AdapterSettings(adapter_init="uniform"))
    assert other.fingerprint.partition(".")[0] == first.fingerprint.partition(".")[0]
    assert other.fingerprint != first.fingerprint
    everything = make_backbone(freeze=False)
    assert set(everything.state_dict()) >= {f"model.{name}" for name, _ in everything.model.named_parameters()}


def test_a_tree_in_one_pass_is_its_paths_one_by_one():
    backbone = make_backbone()
    parent = [-1, 0, 0, 1, 1, 2, 5]
    paths = []
    for node in range(len(parent)):
        path = [node]
        while parent[path[0]] >= 0:
            path.insert(0, parent[path[0]])
        paths.append(path)
    torch.manual_seed(1)
    vectors, states = torch.randn(7, 32), torch.randn(2, 4, 32)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ancestors = torch.tensor([[other in path for other in range(7)] for path in paths])
    depth = torch.tensor([len(path) - 1 for path in paths])
    bias = backbone.tree_bias(ancestors[None], depth[None])
    with torch.no_grad():
        tree = backbone.decode(vectors.expand(2, -1, -1), states, mask, bias)
        for node, path in enumerate(paths):
            alone = backbone.decode(vectors[path].expand(2, -1, -1), states, mask)[:, -1]
            assert torch.allclose(tree[:, node], alone, atol=1e-5)


def test_folders_are_loaded_and_incomplete_ones_refused(tmp_path):
    torch.manual_seed(0)
    model, tokenizer = tiny_backbone(TEXTS, TINY)
    folder = tmp_path / "t5"
    settings = BackboneSettings(backbone=str(folder))
    with pytest.raises(PerPEFTError, match="does not exist"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    model.save_pretrained(folder)
    with pytest.raises(PerPEFTError, match="has no tokenizer"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    tokenizer.save_pretrained(folder)
    loaded = T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    assert torch.equal(loaded.word_vectors(torch.arange(9)), model.shared.weight[:9])
    assert not loaded.model.shared.weight.requires_grad
    word_tokenizer([" ".join(map(chr, range(97, 123)))]).save_pretrained(folder)
    with pytest.raises(PerPEFTError, match="is not that of the model"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    tokenizer.save_pretrained(folder)
    T5Config(**{**model.config.to_dict(), "d_ff": 24}).save_pretrained(folder)
    with pytest.raises(PerPEFTError, match="tensors in .* have other sizes"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    BertConfig().save_pretrained(folder)
    with pytest.raises(PerPEFTError, match="is of the type 'bert', not t5"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    model.config.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(PerPEFTError, match="has no weights"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PerPEFTError, match="cannot be read"):
        T5Backbone.load(settings, T5AdapterSettings(), TINY, [])


def test_random_weights_are_never_frozen():
    with pytest.raises(PerPEFTError, match="freeze_backbone: False"):
        BackboneSettings(backbone="tiny")


def test_tiny_tokenizer_knows_its_words_and_digits():
    tokenizer = word_tokenizer(["A red mug, for 12 people"])
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("red Mug, 251 unheard", add_special_tokens=False).input_ids)
    assert pieces == ["▁red", "▁mug", ",", "▁2", "5", "1", "<unk>"]
    assert tokenizer.decode(tokenizer("red mug, 251").input_ids) == "red mug, 251"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    again = word_tokenizer(["people 12 for mug, red", "a"])
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_a_full_size_t5_small_learns_by_its_trainable_set_alone():
    torch.manual_seed(0)
    model, tokenizer = T5ForConditionalGeneration(T5Config(**T5_SMALL)), word_tokenizer(TEXTS)
    backbone = T5Backbone(model, tokenizer, T5AdapterSettings(adapter_init="uniform"))
    names = token_names("code", torch.arange(50).numpy(), tokenizer)
    features = torch.randn(51, 512)
    visual_settings = VisualSettings(image_features="any.npy")
    visual = VisualTokens(features, torch.ones(51, dtype=torch.bool), backbone.width, visual_settings)
    network = VIP5Network(
        backbone, visual, ItemTrie(names.names, names.n_tokens), None, names.n_tokens, NetworkSettings()
    )
    n_words = backbone.n_words
    # Two items with their visual tokens, and some words.
    tokens = torch.tensor([[n_words + 3, n_words + 9, 0, 0, 5, 6, 1], [n_words, n_words + 8, 0, 0, 7, 1, 0]])
    visual_places = torch.tensor([[-1, -1, 20, 21, -1, -1, -1], [-1, -1, 2, 3, -1, -1, -1]])
    word = torch.tensor([[1, 1, 2, 3, 4, 5, 0], [1, 1, 2, 3, 4, 0, 0]])
    prompt = Prompt(tokens, visual_places, word, tokens + visual_places.clamp(min=0) > 0)
    loss = network.item_loss(prompt, torch.tensor([4, 50])) + network.words_loss(prompt, torch.tensor([[5, 6, 1]] * 2))
    loss.backward()
    assert torch.isfinite(loss)
    learning = {name for name, one in network.named_parameters() if one.grad is not None}
    assert learning == {name for name, one in network.named_parameters() if one.requires_grad}
    assert all(torch.isfinite(one.grad).all() for one in network.parameters() if one.grad is not None)
    frozen = [one for one in network.parameters() if not one.requires_grad]
    assert sum(one.numel() for one in frozen) > 20 * sum(
        backbone.state_dict()[name].numel() for name in backbone.state_dict()
    )
