"""What trains in a frozen encoder, and how it comes in: methods of our own beside those of peft."""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from recbole_perpeft.core.digest import tensor_sample
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.nn.adapt.bottleneck import insert_houlsby_adapters
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.families import (
    ATTENTION_OUTPUT,
    FEED_FORWARD_OUTPUT,
    Family,
    blocks_of,
    find,
    find_encoder,
)
from recbole_perpeft.pretrained.tower import Backbone

_BIAS = re.compile(r"bias|in_proj_bias|[qkv]_bias")
Encoder = FoundationModel | Backbone
Origin = Literal["side", "backbone"]


class Method(Protocol):
    """Puts what trains into a frozen encoder, in place: afterwards, what needs gradients is what is trained."""

    def __call__(self, encoder: Encoder) -> None:
        """Changes the encoder; raises `PerPEFTError` where it does not fit."""
        ...


class TowerParts(NamedTuple):
    """The encoder of one modality, alone or in a dual encoder."""

    kind: str
    model: nn.Module
    family: Family


def towers_of(encoder: Encoder) -> list[TowerParts]:
    """The one or two towers of an encoder into which nothing was put yet."""
    return [TowerParts(kind, *find_encoder(encoder.model, kind)) for kind in encoder.kinds]


def find_role(block: nn.Module, role: str, tower: TowerParts) -> str:
    """Name in a block of the one module that has a role.

    Raises:
        PerPEFTError: There is none, or there are several.
    """
    found = [name for name, _ in block.named_modules() if re.fullmatch(tower.family.projection(role), name)]
    if len(found) != 1:
        raise PerPEFTError(
            f"{tower.kind}_encoder: a block of {type(tower.model).__name__} has {len(found)} modules that look like "
            f"its {role}, not one; it has modules named {module_names(block)}. Choose full or bitfit"
        )
    return found[0]


def module_names(model: nn.Module, most: int = 12) -> str:
    """Some names of modules with weights, for messages."""
    leaves = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if not list(module.children()) and list(module.parameters())
    }
    return ", ".join(sorted(name for name in leaves if not name.isdigit())[:most])


def train_all(encoder: Encoder) -> None:
    """Trains all weights but those that no vector passes, such as the pooler of a BERT (`full`)."""
    is_dual = len(encoder.kinds) > 1  # its vectors pass the heads, but not the scale of its own loss
    unused = {"logit_scale", "logit_bias"} if is_dual else towers_of(encoder)[0].family.heads
    for name, parameter in encoder.named_parameters():
        if unused.isdisjoint(name.split(".")):
            if not parameter.is_floating_point():
                raise PerPEFTError(
                    f"{encoder.kinds[0]}_encoder: full cannot train the quantised weights of "
                    f"{type(encoder.model).__name__}; choose adapter or lora, or an encoder that is not quantised"
                )
            parameter.requires_grad_(True)


def train_biases(encoder: Encoder) -> None:
    """Trains all biases (`bitfit`). The authors' count has that of BERT's pooler too, which never gets a gradient."""
    for name, parameter in encoder.named_parameters():
        if _BIAS.fullmatch(name.rpartition(".")[2]):
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class HoulsbyAdapters(Settings):
    """Puts two adapters into each block (`adapter`), as in the baselines of IISAN-Versa (arXiv 2411.02992)."""

    adapter_rank: int = setting(64, "Inner width of a Houlsby adapter.", least=1)

    def __call__(self, encoder: Encoder) -> None:
        for tower in towers_of(encoder):
            for block in filter(_has_weights, blocks_of(tower.model, tower.family)):
                projections = [find_role(block, role, tower) for role in (ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT)]
                width = int(find(tower.model, tower.family.width))
                insert_houlsby_adapters(block, projections, width, self.adapter_rank)


@dataclass(frozen=True)
class LastBlocks:
    """A method that reaches the last blocks of each tower alone, and what follows them.

    All below stays as it is, so that what it makes of every item can be stored.

    Args:
        method: The method.
        n_blocks: How many blocks; a tower that has fewer is adapted as a whole.
    """

    method: Method
    n_blocks: int

    def __call__(self, encoder: Encoder) -> None:
        """As in `Method`.

        Raises:
            PerPEFTError: No tower has so many blocks, or the method adapts what is below them.
        """
        towers = towers_of(encoder)
        blocks = [blocks_of(tower.model, tower.family) for tower in towers]
        if self.n_blocks > max(map(len, blocks)):
            depths = " and ".join(
                f"the {tower.kind} encoder has {len(own)}" for tower, own in zip(towers, blocks, strict=True)
            )
            raise PerPEFTError(f"adapt_last is {self.n_blocks}, but {depths} blocks: set it to no more")
        below = [max(0, len(own) - self.n_blocks) for own in blocks]
        known = {id(module) for module in encoder.modules()}
        with ExitStack() as hidden:
            for tower, depth in zip(towers, below, strict=True):
                hidden.enter_context(_hidden(find(tower.model, str(tower.family.blocks)), depth))
            self.method(encoder)
        for tower, depth in zip(towers, below, strict=True):
            _freeze_below(tower, depth, known)


@contextmanager
def _hidden(blocks: nn.ModuleList, n: int) -> Iterator[None]:
    """Take the first blocks out of reach for a while."""
    first = list(blocks)[:n]
    for place in range(n):
        blocks[place] = nn.Identity()
    try:
        yield
    finally:
        for place, block in enumerate(first):
            blocks[place] = block


def _freeze_below(tower: TowerParts, depth: int, known: set[int]) -> None:
    for name, module in tower.model.named_modules():
        if first_block(tower.family, name, depth) >= depth:
            continue
        if id(module) not in known:
            raise PerPEFTError(
                f"adapt_last: peft_config adapts {name}, which is below the last blocks; leave one of them out"
            )
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def first_block(family: Family, name: str, n_blocks: int) -> int:
    """The first block that depends on a module, by its name in an encoder; `n_blocks` for what follows all."""
    if family.blocks is not None and name.startswith(f"{family.blocks}."):
        return int(name.removeprefix(f"{family.blocks}.").split(".")[0])
    # Of timm's encoders, `norm` follows the blocks and `norm_pre` does not.
    follows = family.norm is not None and f"{name}.".startswith(f"{family.norm}.")
    return n_blocks if follows or not family.heads.isdisjoint(name.split(".")) else 0


def _has_weights(block: nn.Module) -> bool:
    """Whether a block is within reach (`LastBlocks`)."""
    return next(block.parameters(), None) is not None


class Inserted(NamedTuple):
    """What a method did to an encoder.

    Attributes:
        layers: Modules that came in.
        pretrained: Identities of all tensors that the encoder had before.
    """

    layers: tuple[nn.Module, ...]
    pretrained: frozenset[int]


def insert(encoder: Encoder, method: Method) -> Inserted:
    """Puts what trains into an encoder, in place.

    Raises:
        PerPEFTError: The method does not fit the encoder, or starts by changing its weights.
    """
    modules = {id(module) for module in encoder.modules()}
    tensors = {id(tensor): tensor for tensor in _tensors(encoder)}
    values = _samples(tensors.values())
    method(encoder)
    if _samples(tensors.values()) != values:
        raise PerPEFTError(
            "peft_config: these settings start by changing the frozen weights, which no checkpoint holds; choose "
            "another initialisation of the adapter"
        )
    layers = tuple(module for module in encoder.modules() if id(module) not in modules)
    return Inserted(layers, frozenset(tensors))


def _tensors(encoder: Encoder) -> Iterator[Tensor]:
    yield from encoder.parameters()
    yield from encoder.model.state_dict(keep_vars=True).values()


def _samples(tensors: Iterable[Tensor]) -> list[bytes]:
    return [tensor_sample(tensor) for tensor in tensors if tensor.is_floating_point()]


def untrained_names(encoder: Encoder, known: frozenset[int]) -> frozenset[str]:
    """Persistent tensors that came in and are not trained, such as the projections that VeRA's layers share.

    Args:
        encoder: Into which something was put.
        known: Identities of pretrained and trained tensors.
    """
    first_name: dict[int, str] = {}
    for name, tensor in encoder.model.state_dict(prefix="model.", keep_vars=True).items():
        if id(tensor) not in known:
            first_name.setdefault(id(tensor), name)
    return frozenset(first_name.values())


def tune(backbone: Backbone, method: Method) -> tuple[dict[str, Origin], tuple[nn.Module, ...]]:
    """Makes a frozen backbone trainable by a method, in place; what trains enters its state dict.

    Returns:
        For each parameter that trains, by its name in the backbone: `side` if the method brought it in, `backbone` if
        the pretrained model has it. And the modules that came in.

    Raises:
        PerPEFTError: As `insert`.
    """
    model = backbone.model
    inserted = insert(backbone, method)
    backbone.model = model  # what peft puts around it is not needed: its layers are inside
    # Under all names of a tensor that several layers share: loading would else restore it under its other names.
    names = dict(backbone.named_parameters(remove_duplicate=False))
    trained = {name: id(parameter) for name, parameter in names.items() if parameter.requires_grad}
    known = inserted.pretrained | frozenset(trained.values())
    backbone.checkpointed = frozenset(trained) | untrained_names(backbone, known)
    origins: dict[str, Origin] = {
        name: "backbone" if id(parameter) in inserted.pretrained else "side"
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }
    return origins, inserted.layers
