"""Side networks of IISAN: small towers beside frozen backbones that read their hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, same_as, setting
from recbole_perpeft.nn.adapt.bottleneck import Bottleneck
from recbole_perpeft.nn.users.sasrec import TransformerSettings

ROLES = ("text", "image")
# The authors match names of modules, so blocks of the inter-modal tower learn as those of images do, gates of texts as
# the recommender, and gates of images as the image backbone.
_GROUPS = (
    ("intra.text.blocks.", "side_text"),
    ("intra.image.blocks.", "side_image"),
    ("inter.blocks.", "side_image"),
    ("intra.image.fuse.", "backbone_image"),
    ("heads.text.first.", "backbone_text"),
    ("heads.image.first.", "backbone_image"),
)


@dataclass(frozen=True)
class SideNetworkSettings(Settings):
    """How hidden states become vectors; the defaults are those of IISAN with encoders of equal width (VS).

    The first tower has the role `text`, the second the role `image`, whatever fields they read.
    """

    modality: Literal["intra_inter", "intra", "inter"] = setting(
        "intra_inter", "intra_inter: a tower of each encoder and one of both | intra | inter alone."
    )
    side_rank_text: int = setting(64, "Inner width of the blocks of the first tower.", least=1)
    side_rank_image: int = setting(64, "The same of the second; that of both has the one of equal width.", least=1)
    side_activation: Literal["relu", "gelu"] = setting("relu", "Between the two layers of a block.")
    side_init_std: float = setting(0.01, "Standard deviation of the blocks' weights at the start.", least=0)
    side_init_bias_std: float = setting(0.0, "The same for their biases; 0 starts at zero.", least=0)
    fusion: Literal["gated", "add"] = setting("gated", "gated | add: plain sums (no modality gate).")
    gate_temperature: float = setting(
        0.1, "A gate is sigmoid(p / temperature) with a trained number p, 0 at the start.", above=0
    )
    gate_on: Literal["current", "previous"] = setting(
        "current", "What gates of intra-modal towers weigh: the current state, or the previous output."
    )
    inter_gate_on: Literal["image", "text"] = setting(
        "image", "Whose states gates of the inter-modal tower weigh: image | text."
    )
    first_gate: bool = setting(True, "Whether the first state of an intra-modal tower passes a gate.")
    use_embedding_state: bool = setting(
        True, "Whether the first state, the embedding's output, has a block of its own (authors: not remove_first)."
    )
    dtl_side: Literal["wider", "image"] = setting(
        "wider", "The tower whose states are brought to the other's width (DTL): wider | image."
    )
    head: Literal["wide", "narrow", "concat"] = setting(
        "wide", "wide: two linear layers end a tower | narrow: the first has the final width | concat: none."
    )
    hidden_size: int = same_as(TransformerSettings, "hidden_size")

    def check(self) -> None:
        """The embedding state goes somewhere."""
        if not self.first_gate and not self.use_embedding_state:
            raise PerPEFTError(
                "first_gate: False lets the embedding state into the first block alone, use_embedding_state: False "
                "gives it no block; set only one of them to False"
            )

    def rank(self, role: str) -> int:
        """Inner width of the blocks of a tower."""
        return {"text": self.side_rank_text, "image": self.side_rank_image}[role]

    def block(self, width: int, rank: int) -> Bottleneck:
        """A new block (SAN)."""
        return Bottleneck(width, rank, self.side_activation).start_near_identity(
            self.side_init_std, self.side_init_bias_std
        )


PRESETS = MappingProxyType(
    {
        # Symmetric encoders (VS), Fu et al., SIGIR 2024 (arXiv 2404.02059).
        "iisan": SideNetworkSettings(),
        # Encoders of any widths and depths (VA), Fu et al., TKDE (arXiv 2411.02992).
        "iisan_versa": SideNetworkSettings(head="narrow"),
        # The side network among PerPEFT's modules, Kim, Hwang and Shin, WWW 2026 (arXiv 2602.09445).
        "perpeft": SideNetworkSettings(
            side_rank_text=32,
            side_rank_image=32,
            side_activation="gelu",
            side_init_std=1e-4,
            side_init_bias_std=1e-4,
            gate_temperature=1.0,
            gate_on="previous",
            inter_gate_on="text",
            first_gate=False,
            dtl_side="image",
            head="concat",
        ),
    }
)


class Gates(nn.Module):
    """Weighted means of two vectors with a trained weight g a block: g first + (1 - g) second.

    Args:
        n_gates: One a block.
        temperature: Divides the trained numbers, whose sigmoid g is.
    """

    def __init__(self, n_gates: int, temperature: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_gates))
        self.temperature = temperature

    def forward(self, number: int, first: Tensor, second: Tensor) -> Tensor:
        return torch.lerp(second, first, torch.sigmoid(self.logits[number] / self.temperature))


class Sums(nn.Module):
    """What stands in for `Gates` without gates."""

    def forward(self, number: int, first: Tensor, second: Tensor) -> Tensor:
        return first + second


def _fusion(n_gates: int, settings: SideNetworkSettings) -> nn.Module:
    return Gates(n_gates, settings.gate_temperature) if settings.fusion == "gated" else Sums()


class IntraModalTower(nn.Module):
    r"""Blocks over the states of one backbone.

    .. math:: t_j = B_j(g_j T_j + (1 - g_j) \, t_{j-1})

    IISAN (arXiv 2404.02059), equations 1 and 2.

    Args:
        width: d of the states.
        n_states: m, the embedding state included.
        rank: r of the blocks.
        settings: Blocks and gates.
    """

    def __init__(self, width: int, n_states: int, rank: int, settings: SideNetworkSettings) -> None:
        super().__init__()
        self._use_embedding_state = settings.use_embedding_state
        self._first_gate = settings.first_gate and settings.use_embedding_state
        self._weighs_previous = settings.gate_on == "previous"
        n_blocks = n_states if settings.use_embedding_state else n_states - 1
        self.blocks = nn.ModuleList(settings.block(width, rank) for _ in range(n_blocks))
        self.fuse = _fusion(n_states if self._first_gate else n_states - 1, settings)

    def forward(self, states: Tensor) -> Tensor:
        """Reads states.

        Args:
            states: [n, m, d].

        Returns:
            [n, d]
        """
        blocks, pending = iter(self.blocks), list(states.unbind(1))
        hidden = torch.zeros_like(pending[0]) if self._first_gate else pending.pop(0)
        if self._use_embedding_state and not self._first_gate:
            hidden = next(blocks)(hidden)
        for number, (block, state) in enumerate(zip(blocks, pending, strict=True)):
            first, second = (hidden, state) if self._weighs_previous else (state, hidden)
            hidden = block(self.fuse(number, first, second))
        return hidden


class InterModalTower(nn.Module):
    r"""Blocks over the states of two backbones, paired from the last one down.

    .. math:: x_j = B_j(x_{j-1} + g_j A_v V_j + (1 - g_j) A_t T_j)

    IISAN (arXiv 2404.02059), equation 3. Of the maps A, the one of the projected tower is a linear layer a pair (the
    dimension transformation layer of IISAN-Versa, arXiv 2411.02992), the other one the identity.

    Args:
        widths: Width of the states of each tower.
        n_states: States of each tower, the embedding state included.
        settings: Blocks, gates and alignment.

    Attributes:
        width: Of the output.
    """

    def __init__(self, widths: Sequence[int], n_states: Sequence[int], settings: SideNetworkSettings) -> None:
        super().__init__()
        n_pairs = min(n_states) if settings.use_embedding_state else min(n_states) - 1
        base = int(settings.dtl_side == "wider" and widths[1] < widths[0])
        self.width = widths[base]
        self._projected = 1 - base
        self._gated = ROLES.index(settings.inter_gate_on)
        aligns = settings.dtl_side == "image" or widths[0] != widths[1]
        layers = [nn.Linear(widths[1 - base], self.width) for _ in range(n_pairs if aligns else 0)]
        self.alignments = nn.ModuleList(layers)
        rank = settings.rank(ROLES[base])
        self.blocks = nn.ModuleList(settings.block(self.width, rank) for _ in range(n_pairs))
        self.fuse = _fusion(n_pairs, settings)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Reads states.

        Args:
            states: Two times [n, m_k, d_k].

        Returns:
            [n, width]
        """
        n_pairs = len(self.blocks)
        towers = [list(tower[:, -n_pairs:].unbind(1)) for tower in states]
        if self.alignments:
            layers = zip(self.alignments, towers[self._projected], strict=True)
            # Mixed precision computes the layers in half precision, which the gates do not mix with the states'.
            towers[self._projected] = [layer(state).to(state.dtype) for layer, state in layers]
        gated, other = towers[self._gated], towers[1 - self._gated]
        hidden = self.blocks[0](self.fuse(0, gated[0], other[0]))
        for number, block in enumerate(list(self.blocks)[1:], start=1):
            hidden = block(hidden + self.fuse(number, gated[number], other[number]))
        return hidden


class Head(nn.Module):
    """Two linear layers from a tower's output to its part of the item vector, nothing between them.

    Args:
        width: Of the tower's output.
        inner_width: Of the first layer's output.
        output_width: Of the second layer's output.
    """

    def __init__(self, width: int, inner_width: int, output_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, inner_width)
        self.last = nn.Linear(inner_width, output_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.last(self.first(hidden))


class SideNetwork(nn.Module):
    """Intra-modal towers of one or two backbones, an inter-modal tower over both, and a head for each.

    Args:
        settings: What is built.
        widths: Width d_k of the states of each tower: one or two towers, in the order of `ROLES`.
        n_states: States m_k of each tower, the embedding state included.

    Attributes:
        output_size: Width of the output.

    Raises:
        PerPEFTError: The settings do not fit the towers.
    """

    def __init__(self, settings: SideNetworkSettings, widths: Sequence[int], n_states: Sequence[int]) -> None:
        super().__init__()
        _check_towers(settings, widths, n_states)
        self.settings = settings
        self.widths, self.n_states = tuple(widths), tuple(n_states)
        self.intra = nn.ModuleDict()
        if settings.modality != "inter":
            for role, width, count in zip(ROLES, widths, n_states, strict=False):
                self.intra[role] = IntraModalTower(width, count, settings.rank(role), settings)
        self.inter = None if settings.modality == "intra" else InterModalTower(widths, n_states, settings)
        sizes = dict(zip(ROLES, widths, strict=False)) if settings.modality != "inter" else {}
        if self.inter is not None:
            sizes["inter"] = self.inter.width
        self.heads = nn.ModuleDict()
        if settings.head != "concat":
            self._build_heads(sizes)
        self._order = tuple(sizes) if settings.head == "concat" else ("image", "text", "inter")
        self.output_size = sum(sizes.values()) if settings.head == "concat" else settings.hidden_size * len(sizes)

    def _build_heads(self, sizes: dict[str, int]) -> None:
        final = self.settings.hidden_size
        narrow = self.settings.head == "narrow"
        heads = {
            part: Head(width, final if narrow and part != "inter" else width, final) for part, width in sizes.items()
        }
        if "image" in heads and not narrow:
            nn.init.xavier_normal_(heads["image"].last.weight)
            nn.init.zeros_(heads["image"].last.bias)
        self.heads.update(heads)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Turns hidden states of items into vectors.

        Args:
            states: For each tower [n, m_k, d_k], ascending: the embedding state first, the last block's last.

        Returns:
            [n, output_size]: the heads of the image, text and inter-modal tower; without heads, the outputs of the
            text, image and inter-modal tower.

        Raises:
            PerPEFTError: States have another shape.
        """
        self._check_states(states)
        intra = zip(self.intra.items(), states, strict=False)  # no intra-modal tower, or one for each of the states
        parts = {role: tower(tower_states) for (role, tower), tower_states in intra}
        if self.inter is not None:
            parts["inter"] = self.inter(states)
        present = [part for part in self._order if part in parts]
        return torch.cat([self.heads[part](parts[part]) if self.heads else parts[part] for part in present], dim=1)

    def _check_states(self, states: Sequence[Tensor]) -> None:
        found = [tuple(tower.shape) for tower in states]
        n_items = found[0][0] if found and found[0] else 0
        expected = [(n_items, *size) for size in zip(self.n_states, self.widths, strict=True)]
        if found != expected:
            raise PerPEFTError(
                f"hidden states of the shapes {found} do not fit a side network for {len(expected)} towers of "
                f"{', '.join(f'{count} states of width {width}' for _, count, width in expected)} on the same items; "
                "build the side network for the encoders and kept blocks of the cache"
            )

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of each parameter, as IISAN's authors group them.

        Returns:
            Name of parameter -> `recsys`, `side_text`, `side_image`, `backbone_text` or `backbone_image`.
        """
        names = [name for name, _ in self.named_parameters()]
        return {name: next((g for start, g in _GROUPS if name.startswith(start)), "recsys") for name in names}


def _check_towers(settings: SideNetworkSettings, widths: Sequence[int], n_states: Sequence[int]) -> None:
    if len(widths) != len(n_states) or not 1 <= len(widths) <= len(ROLES):
        raise PerPEFTError(
            f"towers: {len(widths)} widths and {len(n_states)} numbers of states; a side network has one or two towers"
        )
    if len(widths) == 1 and settings.modality != "intra":
        raise PerPEFTError(
            f"modality: {settings.modality} needs the states of two towers; with one tower choose intra"
        )
    if min(widths) < 1:
        raise PerPEFTError(f"towers: states of the widths {list(widths)}; each must be 1 or more")
    if min(n_states) < 2:
        raise PerPEFTError(
            f"towers: {list(n_states)} hidden states; each tower needs that of the embedding and at least one block's"
        )
