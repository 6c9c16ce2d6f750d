"""Group LayerDrop: which blocks of a backbone feed the side network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.pretrained.families import WITHOUT_BLOCKS

LayerDropRule = Literal["max_span", "eq5"]


def kept_blocks(n_layers: int, n_blocks: int | None = 6, rule: LayerDropRule = "max_span") -> tuple[int, ...]:
    """Evenly spaced blocks of a backbone, the last one among them.

    IISAN-Versa (arXiv 2411.02992) section 3.3. The published lists for backbones of 12, 24, 28, 32, 48 and 80 blocks
    follow from `max_span`: the largest stride that leaves the first kept block at 1 or above. `eq5` is the paper's
    equation 5 read literally; it gives other lists for 48 and 80 blocks, and the even ones of Table VII.

    Args:
        n_layers: Blocks of the backbone.
        n_blocks: Blocks to keep; None keeps all of them.
        rule: `max_span` or `eq5`.

    Returns:
        Numbers of blocks, ascending. Block b is the one whose output is hidden state b; the first block is 1.

    Raises:
        PerPEFTError: The backbone has too few blocks, or the rule is unknown.
    """
    if rule not in get_args(LayerDropRule):
        raise PerPEFTError(f"layerdrop_rule: {rule!r} is unknown; choose one of {', '.join(get_args(LayerDropRule))}")
    if n_blocks is None:
        return tuple(range(1, n_layers + 1))
    if not 1 <= n_blocks <= n_layers:
        raise PerPEFTError(
            f"n_blocks: {n_blocks} cannot be kept of the {n_layers} blocks of the backbone; choose 1 to {n_layers}"
        )
    stride = -(-n_layers // n_blocks) if rule == "eq5" else (n_layers - 1) // max(n_blocks - 1, 1)
    first = n_layers - stride * (n_blocks - 1)
    if first < 1:
        raise PerPEFTError(
            f"layerdrop_rule: eq5 goes {stride} blocks at a time, and {n_blocks} of such steps do not fit into "
            f"{n_layers} blocks; choose max_span or fewer n_blocks"
        )
    return tuple(first + stride * number for number in range(n_blocks))


def check_blocks(blocks: Sequence[int], n_layers: int, key: str = "blocks") -> tuple[int, ...]:
    """An explicit list of blocks, if a backbone has them.

    Args:
        blocks: Numbers of blocks, ascending, the first block of the backbone being 1.
        n_layers: Blocks of the backbone.
        key: Name of the setting, for the message.

    Raises:
        PerPEFTError: A number is out of range, repeated or out of order, or there is none.
    """
    numbers = tuple(blocks)
    if not numbers:
        raise PerPEFTError(f"{key}: is an empty list; name at least one block, or leave the key out")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= n_layers:
            raise PerPEFTError(f"{key}: there is no block {number!r}; the backbone has the blocks 1 to {n_layers}")
    for before, after in zip(numbers, numbers[1:], strict=False):
        if after <= before:
            problem = "is repeated" if after == before else f"stands after block {before}"
            raise PerPEFTError(f"{key}: block {after} {problem}; list each block once, in ascending order")
    return numbers


@dataclass(frozen=True)
class LayerDropSettings(Settings):
    """Which blocks of the encoders feed the side network; the defaults are those of IISAN's authors."""

    n_blocks: int | None = setting(6, "Blocks kept of each encoder (group LayerDrop); ~ for all.")
    layerdrop_rule: LayerDropRule = setting("max_span", "How they are chosen: max_span | eq5.")
    text_blocks: tuple[int, ...] | None = setting(None, "Blocks of the text encoder, instead of the rule.")
    image_blocks: tuple[int, ...] | None = setting(None, "Blocks of the image encoder, instead of the rule.")

    def states(self, n_layers: Sequence[int], roles: Sequence[str] = ("text", "image")) -> tuple[tuple[int, ...], ...]:
        """Hidden states that a side network reads of each tower's backbone.

        Args:
            n_layers: Blocks of the backbone of each tower: one or two numbers.
            roles: The place that each tower takes, `text` or `image`.

        Returns:
            Indexes of hidden states for each tower, ascending; 0 is the output of the embedding and comes first.

        Raises:
            PerPEFTError: A backbone lacks a block, or its blocks differ in width.
        """
        if 0 in n_layers:
            raise PerPEFTError(
                "text_encoder, image_encoder: a side network reads states of one width, and the stages of one encoder "
                f"differ in width; {WITHOUT_BLOCKS}"
            )
        explicit = {"text": self.text_blocks, "image": self.image_blocks}
        pairs = zip(n_layers, roles, strict=False)
        return tuple((0, *self._blocks(depth, role, explicit[role])) for depth, role in pairs)

    def _blocks(self, depth: int, role: str, blocks: tuple[int, ...] | None) -> tuple[int, ...]:
        return self._by_rule(depth) if blocks is None else check_blocks(blocks, depth, f"{role}_blocks")

    def _by_rule(self, n_layers: int) -> tuple[int, ...]:
        return kept_blocks(n_layers, self.n_blocks, self.layerdrop_rule)
