import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.nn.side_network import PRESETS, SideNetwork, SideNetworkSettings

SMALL = SideNetworkSettings(side_rank_text=3, side_rank_image=5, side_init_std=0.3, hidden_size=4)
SMALL_PERPEFT = replace(
    PRESETS["perpeft"], side_rank_text=3, side_rank_image=5, side_init_std=0.3, side_init_bias_std=0.3
)
VARIANTS = {
    "gated": (SMALL, (6, 6), (4, 4)),
    "add": (replace(SMALL, fusion="add"), (6, 6), (4, 4)),
    "intra": (replace(SMALL, modality="intra"), (6, 6), (4, 4)),
    "inter": (replace(SMALL, modality="inter"), (6, 6), (4, 4)),
    "inter, wider text": (replace(SMALL, modality="inter"), (8, 6), (3, 3)),
    "deeper text": (SMALL, (6, 6), (6, 4)),
    "deeper image": (SMALL, (6, 6), (3, 5)),
    "wider text": (SMALL, (8, 6), (4, 4)),
    "wider image": (SMALL, (6, 8), (4, 4)),
    "wider and deeper text, narrow": (replace(SMALL, head="narrow"), (8, 6), (5, 3)),
    "narrow": (replace(SMALL, head="narrow"), (6, 6), (4, 4)),
    "concat": (replace(SMALL, head="concat"), (6, 7), (4, 4)),
    "one tower": (replace(SMALL, modality="intra"), (6,), (4,)),
    "one tower, concat": (replace(SMALL, modality="intra", head="concat"), (6,), (4,)),
    "embedding as start": (replace(SMALL, use_embedding_state=False), (6, 6), (4, 4)),
    "embedding as start, add, deeper text": (replace(SMALL, use_embedding_state=False, fusion="add"), (6, 6), (5, 3)),
    "embedding as start, deeper image": (replace(SMALL, use_embedding_state=False), (6, 8), (2, 4)),
    "no first gate": (replace(SMALL, first_gate=False), (6, 6), (4, 4)),
    "gelu, gate on the previous state": (replace(SMALL, side_activation="gelu", gate_on="previous"), (6, 6), (4, 4)),
    "gate of the inter tower on text": (replace(SMALL, inter_gate_on="text"), (6, 8), (4, 4)),
    "images aligned though narrower": (replace(SMALL, dtl_side="image"), (8, 6), (4, 4)),
    "perpeft": (SMALL_PERPEFT, (6, 8), (4, 4)),
    "perpeft, equal widths": (SMALL_PERPEFT, (6, 6), (4, 4)),
    "perpeft, one tower": (replace(SMALL_PERPEFT, modality="intra"), (6,), (4,)),
}


def random_network(options, widths, n_states):
    """A network in float64 whose gates and biases are not at their start."""
    torch.manual_seed(0)
    network = SideNetwork(options, widths, n_states).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def random_states(widths, n_states, n_items=3):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(n_items, count, width, generator=generator, dtype=torch.float64)
        for width, count in zip(widths, n_states, strict=True)
    ]


class PlainSideNetwork:
    """The formulas, for one item, from named weights."""

    def __init__(self, options, weights):
        self.options, self.weights = options, weights

    def linear(self, name, x):
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def block(self, tower, j, x):
        activation = {"relu": functional.relu, "gelu": functional.gelu}[self.options.side_activation]
        return x + self.linear(f"{tower}.blocks.{j}.up", activation(self.linear(f"{tower}.blocks.{j}.down", x)))

    def gate(self, tower, j):
        return 1 / (1 + math.exp(-float(self.weights[f"{tower}.fuse.logits"][j]) / self.options.gate_temperature))

    def intra(self, role, states):
        tower = f"intra.{role}"
        blocks = list(states)
        previous = torch.zeros_like(states[0])
        if not self.options.use_embedding_state:
            previous = blocks.pop(0)
        for j, state in enumerate(blocks):
            if self.options.fusion == "add":
                entered = state + previous
            elif j == 0 and not self.options.first_gate:
                entered = state
            else:
                g = self.gate(tower, j if self.options.first_gate else j - 1)
                if self.options.gate_on == "previous":
                    g = 1 - g
                entered = g * state + (1 - g) * previous
            previous = self.block(tower, j, entered)
        return previous

    def align(self, role, j, state, widths):
        text, image = widths
        if self.options.dtl_side == "image":
            projected = "image"
        else:
            projected = {True: "text", False: "image"}[text > image] if text != image else None
        return self.linear(f"inter.alignments.{j}", state) if role == projected else state

    def inter(self, text, image):
        if not self.options.use_embedding_state:
            text, image = text[1:], image[1:]
        depth = min(len(text), len(image))
        text, image = text[len(text) - depth :], image[len(image) - depth :]
        x = 0.0
        for j in range(depth):
            widths = (len(text[j]), len(image[j]))
            a, b = self.align("text", j, text[j], widths), self.align("image", j, image[j], widths)
            if self.options.fusion == "add":
                entered = x + b + a
            else:
                g = self.gate("inter", j)
                if self.options.inter_gate_on == "text":
                    g = 1 - g
                entered = x + g * b + (1 - g) * a
            x = self.block("inter", j, entered)
        return x

    def __call__(self, states):
        parts = {}
        if self.options.modality != "inter":
            for role, tower in zip(("text", "image"), states, strict=False):
                parts[role] = self.intra(role, tower)
        if self.options.modality != "intra":
            parts["inter"] = self.inter(*states)
        if self.options.head == "concat":
            return torch.cat([parts[part] for part in ("text", "image", "inter") if part in parts])
        heads = [part for part in ("image", "text", "inter") if part in parts]
        return torch.cat(
            [self.linear(f"heads.{part}.last", self.linear(f"heads.{part}.first", parts[part])) for part in heads]
        )


@pytest.mark.parametrize(("options", "widths", "n_states"), VARIANTS.values(), ids=VARIANTS.keys())
def test_side_network_equals_a_plain_loop(options, widths, n_states):
    network = random_network(options, widths, n_states)
    states = random_states(widths, n_states)
    plain = PlainSideNetwork(options, network.state_dict())
    expected = torch.stack([plain([tower[item] for tower in states]) for item in range(3)])
    result = network(states)
    assert result.shape == (3, network.output_size)
    torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(network.float()([tower.float() for tower in states]), expected.float())


@pytest.mark.parametrize(("options", "widths", "n_states"), VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_has_a_gradient_and_a_group(options, widths, n_states):
    network = random_network(options, widths, n_states)
    network(random_states(widths, n_states, n_items=64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    groups = network.parameter_groups()
    assert list(groups) == [name for name, _ in network.named_parameters()]
    assert set(groups.values()) <= {"recsys", "side_text", "side_image", "backbone_text", "backbone_image"}


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 9), st.integers(2, 9), st.booleans(), st.booleans())
def test_any_depths_and_widths(text_depth, image_depth, text_width, image_width, start, add):
    options = replace(SMALL, use_embedding_state=start, fusion="add" if add else "gated")
    sizes = (text_width, image_width), (text_depth, image_depth)
    network, states = random_network(options, *sizes), random_states(*sizes, n_items=1)
    plain = PlainSideNetwork(options, network.state_dict())
    torch.testing.assert_close(network(states)[0], plain([tower[0] for tower in states]), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("widths", "rank"), [((6, 6), 3), ((6, 8), 3), ((8, 6), 5)])
def test_the_inter_modal_tower_has_the_rank_of_the_tower_of_its_width(widths, rank):
    network = SideNetwork(SMALL, widths, (3, 3))
    assert network.inter.blocks[0].down.weight.shape == (rank, min(widths))
    assert network.intra["text"].blocks[0].down.weight.shape == (3, widths[0])
    assert network.intra["image"].blocks[0].down.weight.shape == (5, widths[1])


def test_start_of_training():
    torch.manual_seed(0)
    network = SideNetwork(PRESETS["iisan"], (256, 256), (3, 3))
    block = network.intra["text"].blocks[0]
    for weight in (block.down.weight, block.up.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not block.down.bias.any() and not block.up.bias.any()
    assert not network.inter.fuse.logits.any()
    last = network.heads["image"].last
    assert last.weight.std().item() == pytest.approx(math.sqrt(2 / (256 + 64)), rel=0.1)
    assert not last.bias.any() and network.heads["text"].last.bias.any()


def test_start_of_perpeft():
    torch.manual_seed(0)
    network = SideNetwork(PRESETS["perpeft"], (512, 768), (7, 7))
    assert network.output_size == 1792
    block = network.inter.blocks[0]
    for parameter in (block.down.weight, block.up.weight, block.up.bias):
        assert parameter.std().item() == pytest.approx(1e-4, rel=0.2)
    assert block.down.weight.shape == (32, 512)
    assert isinstance(block.activation, nn.GELU)
    assert network.inter.alignments[0].weight.shape == (512, 768)


USER_ENCODER, FUSION = 100_224, 12_352
BERT_BASE, BERT_LARGE, VIT_BASE, VIT_LARGE = (768, 12), (1024, 24), (768, 12), (1024, 24)
GEMMA_7B, LLAMA_7B, LLAMA_70B = (3072, 28), (4096, 32), (8192, 80)


def full_size(preset, text, image):
    widths, depths = zip(text, image, strict=True)
    states = LayerDropSettings().states(depths)
    with torch.device("meta"):
        return SideNetwork(PRESETS[preset], widths, [len(tower) for tower in states])


@pytest.mark.parametrize(
    ("preset", "text", "image", "expected"),
    [
        ("iisan", BERT_BASE, VIT_BASE, 4_113_877),
        ("iisan_versa", BERT_BASE, VIT_BASE, 2_941_013),
        ("iisan_versa", BERT_LARGE, VIT_BASE, 8_698_965),
        ("iisan_versa", BERT_BASE, VIT_LARGE, 8_698_965),
        ("iisan_versa", GEMMA_7B, VIT_BASE, 21_689_429),
        ("iisan_versa", LLAMA_7B, VIT_BASE, 28_184_661),
        ("iisan_versa", LLAMA_70B, VIT_BASE, 54_165_589),
    ],
)
def test_published_parameter_counts(preset, text, image, expected):
    network = full_size(preset, text, image)
    assert sum(p.numel() for p in network.parameters()) + USER_ENCODER + FUSION == expected


def test_alignment_of_the_largest_encoder_has_most_parameters():
    network = full_size("iisan_versa", LLAMA_70B, VIT_BASE)
    assert sum(p.numel() for p in network.inter.alignments.parameters()) == 44_045_568


def test_sizes_of_the_official_parameter_groups():
    network = full_size("iisan", BERT_BASE, VIT_BASE)
    sizes = dict.fromkeys(("recsys", "side_image", "side_text", "backbone_image", "backbone_text"), 0)
    groups = network.parameter_groups()
    for name, parameter in network.named_parameters():
        sizes[groups[name]] += parameter.numel()
    sizes["recsys"] += USER_ENCODER + FUSION
    assert list(sizes.values()) == [850_830, 1_387_904, 693_952, 590_599, 590_592]


def test_alignments_and_gates_belong_to_their_groups():
    groups = full_size("iisan_versa", BERT_LARGE, VIT_BASE).parameter_groups()
    assert groups["inter.alignments.0.weight"] == groups["intra.text.fuse.logits"] == "recsys"
    assert groups["inter.fuse.logits"] == groups["heads.inter.first.weight"] == "recsys"
    assert groups["intra.image.fuse.logits"] == "backbone_image"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 4, 6)], "2 towers of 4 states of width 6, 4 states of width 6"),
        ([(3, 4, 6), (2, 4, 6)], "same items"),
        ([(3, 5, 6), (3, 4, 6)], "kept blocks"),
        ([(3, 4, 6), (3, 4, 7)], r"\(3, 4, 7\)"),
        ([(), (3, 4, 6)], "do not fit"),
        ([], "do not fit"),
    ],
)
def test_states_of_another_shape_are_refused(shapes, message):
    network = SideNetwork(SMALL, (6, 6), (4, 4))
    with pytest.raises(PerPEFTError, match=message):
        network([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize(
    ("widths", "n_states", "message"),
    [
        ((), (), "one or two towers"),
        ((6, 6, 6), (4, 4, 4), "one or two towers"),
        ((6, 6), (4,), "one or two towers"),
        ((6,), (4,), "modality: intra_inter needs the states of two towers"),
        ((6, 0), (4, 4), "widths"),
        ((6, 6), (4, 1), "at least one block"),
    ],
)
def test_towers_that_do_not_fit_the_settings(widths, n_states, message):
    with pytest.raises(PerPEFTError, match=message):
        SideNetwork(SMALL, widths, n_states)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modality", "text"),
        ("head", "deep"),
        ("side_activation", "tanh"),
        ("side_rank_text", 0),
        ("side_rank_image", 0),
        ("hidden_size", 0),
        ("side_init_std", -0.1),
        ("side_init_bias_std", math.inf),
        ("gate_temperature", 0.0),
        ("gate_temperature", math.nan),
    ],
)
def test_wrong_settings_name_the_key(key, value):
    with pytest.raises(PerPEFTError, match=key):
        SideNetworkSettings(**{key: value})


def test_settings_that_exclude_each_other():
    with pytest.raises(PerPEFTError, match="first_gate.*use_embedding_state"):
        SideNetworkSettings(first_gate=False, use_embedding_state=False)


@pytest.mark.parametrize("variant", ["gated", "wider text", "perpeft", "add"])
def test_mixed_precision(variant):
    options, widths, n_states = VARIANTS[variant]
    network = random_network(options, widths, n_states).float()
    states = [tower.float() for tower in random_states(widths, n_states)]
    expected = network(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(states)
    torch.testing.assert_close(result.float(), expected, atol=0.15, rtol=0.1)
    result.float().sum().backward()
