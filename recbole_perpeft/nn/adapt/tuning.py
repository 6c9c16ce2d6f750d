"""Which parameters of a backbone train, and which new ones come in: the methods that IISAN is compared with."""

import re
import warnings
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.nn.adapt.bottleneck import insert_houlsby_adapters
from recbole_perpeft.nn.adapt.methods import module_names
from recbole_perpeft.pretrained.families import ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT, QUERY, VALUE
from recbole_perpeft.pretrained.tower import Backbone

Adaptation = Literal["full", "adapter", "lora", "bitfit", "frozen"]


@dataclass(frozen=True)
class TuningSettings(Settings):
    """How encoders are adapted; the defaults are those of IISAN's baselines (arXiv 2411.02992)."""

    adaptation: Adaptation = setting(
        "full",
        "full trains all weights | adapter: two Houlsby adapters a block | lora: on queries and values, and their "
        "biases | bitfit: all biases | frozen: final vectors are computed once and stored.",
    )
    adapter_rank: int = setting(64, "Inner width of a Houlsby adapter.", least=1)
    lora_rank: int = setting(8, "Rank of LoRA.", least=1)
    lora_alpha: float = setting(1, "Scale of LoRA times the rank.", above=0)
    backbone_train_mode: bool = setting(False, "Whether the encoders' own dropout is on in training.")
    gradient_checkpointing: bool = setting(
        False, "Keep one chunk's activations at a time and compute them again in the backward pass."
    )


def tune(backbone: Backbone, settings: TuningSettings) -> dict[str, Literal["side", "backbone"]]:
    """Makes a frozen backbone trainable by a method, in place; what trains enters its state dict.

    Args:
        backbone: The backbone.
        settings: The method.

    Returns:
        For each parameter that trains, by its name in the backbone: `side` if the method brought it in, `backbone` if
        the pretrained model has it.

    Raises:
        PerPEFTError: The method does not fit the backbone: its blocks have no such projections, or its weights are
            quantised.
    """
    pretrained = {id(parameter) for parameter in backbone.parameters()}
    _METHODS[settings.adaptation](backbone, settings)
    # Under all names of a tensor that several layers share: loading would else restore it under its other names.
    names = dict(backbone.named_parameters(remove_duplicate=False))
    backbone.checkpointed = frozenset(name for name, parameter in names.items() if parameter.requires_grad)
    return {
        name: "backbone" if id(parameter) in pretrained else "side"
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }


def _train_all(backbone: Backbone, _settings: TuningSettings) -> None:
    for name, parameter in backbone.named_parameters():
        if backbone.family.heads.isdisjoint(name.split(".")):
            if not parameter.is_floating_point():
                raise PerPEFTError(
                    f"adaptation: full cannot train the quantised weights of {type(backbone.model).__name__}; choose "
                    f"adapter or lora, or a {backbone.kind}_encoder that is not quantised"
                )
            parameter.requires_grad_(True)


def _train_biases(backbone: Backbone, _settings: TuningSettings) -> None:
    """All biases. The authors' count has that of BERT's pooler too, which never gets a gradient."""
    for name, parameter in backbone.named_parameters():
        if name.endswith(".bias"):
            parameter.requires_grad_(True)


def _insert_adapters(backbone: Backbone, settings: TuningSettings) -> None:
    for block in backbone.layers:
        projections = [_find(block, role, backbone) for role in (ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT)]
        insert_houlsby_adapters(block, projections, backbone.width, settings.adapter_rank)


def _insert_lora(backbone: Backbone, settings: TuningSettings) -> None:
    name_of = {id(module): name for name, module in backbone.model.named_modules()}
    targets = [
        f"{name_of[id(block)]}.{_find(block, role, backbone)}" for block in backbone.layers for role in (QUERY, VALUE)
    ]
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # peft divides it by the rank: any number does
        lora_dropout=0.0,
        bias="lora_only",
        target_modules=targets,
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute of old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        inject_adapter_in_model(config, backbone.model)


def _find(block: nn.Module, role: str, backbone: Backbone) -> str:
    """Name in a block of the one module that has a role."""
    found = [name for name, _ in block.named_modules() if re.fullmatch(backbone.family.projection(role), name)]
    if len(found) != 1:
        raise PerPEFTError(
            f"adaptation: a block of {type(backbone.model).__name__} has {len(found)} modules that look like its "
            f"{role}, not one; it has modules named {module_names(block)}. Choose full or bitfit, or another "
            f"{backbone.kind}_encoder"
        )
    return found[0]


_METHODS = {
    "full": _train_all,
    "adapter": _insert_adapters,
    "lora": _insert_lora,
    "bitfit": _train_biases,
    "frozen": lambda backbone, settings: None,
}
