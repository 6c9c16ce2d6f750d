"""Families of encoders: everything that depends on how one is built, as one record a family.

Names of submodules differ between families and between releases: the blocks of a ViT are `encoder.layer` in
transformers 4 and `layers` in transformers 5. A family that is missing here is added by `register_family`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError

KINDS = ("text", "image")
WITHOUT_BLOCKS = "choose MoRec with adaptation full, bitfit or frozen, or an encoder such as ViT"
_TOWERS = {"text": ("text_model", "language_model"), "image": ("vision_model", "vision_tower")}
_CLASS_TOKENS = tuple(
    where + name for where in ("embeddings.", "") for name in ("cls_token", "class_embedding", "class_token")
)
QUERY, KEY, VALUE = "query projection", "key projection", "value projection"
ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT = "attention output projection", "feed-forward output projection"
FEED_FORWARD_INPUT, FIRST_NORM, SECOND_NORM = "feed-forward input projection", "first norm", "second norm"
_PROJECTIONS = {
    QUERY: r"(.+\.)?(query|q_proj|q_lin|q)",
    KEY: r"(.+\.)?(key|k_proj|k_lin|k)",
    VALUE: r"(.+\.)?(value|v_proj|v_lin|v)",
    ATTENTION_OUTPUT: r"attention\.output\.dense|(.+\.)?(o_proj|out_proj|out_lin|attn\.o|attn\.Wo)",
    FEED_FORWARD_INPUT: r"intermediate\.dense|(.+\.)?(fc1|up_proj|lin1|weights_in|mlp\.Wi)",
    FEED_FORWARD_OUTPUT: r"output\.dense|(.+\.)?(fc2|down_proj|lin2|weights_out|mlp\.Wo)",
    FIRST_NORM: r"attention\.output\.LayerNorm|layernorm_before|input_layernorm|(layer_)?norm1|(sa_layer|attn)_norm",
    SECOND_NORM: r"output\.LayerNorm|layernorm_after|post_attention_layernorm|(layer_)?norm2|(output_layer|mlp)_norm",
}
_HEADS = frozenset({"pooler", "head", "lm_head", "text_projection", "visual_projection"})
_Targets = Mapping[str, Mapping[str, tuple[str, ...]]]
_TARGETS: _Targets = {
    "": {"target_modules": ("q_proj", "v_proj")},
    "ia3": {"target_modules": ("k_proj", "v_proj", "fc1"), "feedforward_modules": ("fc1",)},
    "ln_tuning": {"target_modules": ("layer_norm1", "layer_norm2")},
}
# What these names of CLIP stand for in blocks that have other names.
_ROLES = {
    "q_proj": QUERY,
    "k_proj": KEY,
    "v_proj": VALUE,
    "fc1": FEED_FORWARD_INPUT,
    "layer_norm1": FIRST_NORM,
    "layer_norm2": SECOND_NORM,
}


@dataclass(frozen=True)
class Family:
    """What our code has to know of encoders of one kind that are built alike.

    Paths are dotted names of attributes and start at the encoder; that of a dual encoder is its tower.

    Attributes:
        name: What it is called.
        kind: `text` or `image`.
        blocks: Path of the list of blocks; None where blocks differ in width, so that no hidden states can be kept:
            then the encoder's own vector, `pooler_output`, is all there is.
        norm: Path of the norm behind the last block; None where blocks end with their own.
        pooling: What makes one vector of the tokens, as the family was trained to be read: `cls`, `eos`, `mean` or
            `own`.
        norms_last_state: Whether transformers counts the normalised vector as the last hidden state, which decoders
            do and vision encoders do not.
        model_types: `model_type` of the configurations that it is for; empty for all encoders that have its blocks
            and norm.
        tower: Path of the encoder in a dual encoder of these types; None for the usual names.
        fixed_length: Whether the text vector is read from the last slot, whatever stands there: texts keep one length
            and have no mask.
        needs: Paths of what an encoder must have besides blocks and norm.
        own_pooling: Path of a method that pools tokens [n, T, d] as the family's own head does; None without one.
        class_tokens: Paths of which one exists if there is a class token before the patches of an image.
        width: Path of the size of a hidden state, or of the encoder's own vector.
        projections: Name inside a block, as a regular expression, by role, where it is not one of the usual names.
        heads: Parts of names of modules that follow the last hidden states: vectors are pooled without them.
        targets: Names of modules that a method of peft adapts unless the user says otherwise, by method; those under
            the empty name are for all other methods.
    """

    name: str
    kind: str
    blocks: str | None
    norm: str | None
    pooling: str
    norms_last_state: bool = False
    model_types: frozenset[str] = frozenset()
    tower: str | None = None
    fixed_length: bool = False
    needs: tuple[str, ...] = ()
    own_pooling: str | None = None
    class_tokens: tuple[str, ...] = _CLASS_TOKENS
    width: str = "config.hidden_size"
    projections: Mapping[str, str] = field(default_factory=dict)
    heads: frozenset[str] = _HEADS
    targets: _Targets = field(default_factory=lambda: _TARGETS)

    @property
    def reading(self) -> str:
        """Identifies how states are read from the encoder, the same in every process."""
        places = (self.blocks, self.norm, self.norms_last_state, self.own_pooling, self.tower, self.fixed_length)
        return value_hash([*places, sorted(self.heads)])

    def fits(self, encoder: nn.Module, model_types: frozenset[str]) -> bool:
        """Whether an encoder whose configurations have these types belongs to the family."""
        if self.model_types and self.model_types.isdisjoint(model_types):
            return False
        if self.blocks is None:
            return True
        blocks = find(encoder, self.blocks)
        others = (path for path in (self.norm, self.own_pooling, *self.needs) if path is not None)
        return (
            isinstance(blocks, (nn.ModuleList, nn.Sequential))
            and len(blocks) > 0
            and all(find(encoder, path) is not None for path in others)
        )

    def projection(self, role: str) -> str:
        """Name inside a block of the module that has a role, as a regular expression."""
        return self.projections.get(role, _PROJECTIONS[role])

    def has_class_token(self, encoder: nn.Module) -> bool:
        """Whether a vision encoder puts a class token before the patches; SigLIP does not."""
        return any(find(encoder, path) is not None for path in self.class_tokens)


_SIGLIP = frozenset({"siglip", "siglip2"})
# Models of timm, in the wrapper of transformers: their head is the global pooling, and no other part follows it.
_TIMM = Family(
    "timm",
    "image",
    blocks=None,
    norm=None,
    pooling="own",
    model_types=frozenset({"timm_wrapper"}),
    class_tokens=("timm_model.cls_token",),
    width="timm_model.head_hidden_size",
    projections={ATTENTION_OUTPUT: r"attn\.proj"},
    heads=frozenset(),
)
_TIMM_EVA = replace(
    _TIMM,
    name="EVA of timm",
    blocks="timm_model.blocks",
    norm="timm_model.norm",
    own_pooling="timm_model.pool",
    # Where queries and values are one projection, these blocks read its weight and never call it.
    needs=("timm_model.blocks.0.attn.qkv_bias_separate",),
)
_TIMM_VIT = replace(
    _TIMM_EVA,
    name="ViT of timm",
    needs=(),
    projections={**_TIMM.projections, QUERY: r"attn\.(qkv|q_proj)", VALUE: r"attn\.(qkv|v_proj)"},
)
# The first that fits is taken.
_BUILT_IN = (
    Family("SigLIP", "text", "encoder.layers", "final_layer_norm", "eos", model_types=_SIGLIP, fixed_length=True),
    Family("CLIP", "text", "encoder.layers", "final_layer_norm", "eos"),
    Family("ModernBERT", "text", "layers", "final_norm", "cls"),
    # Llama, Mistral, Mixtral, Gemma, Qwen, Phi
    Family("Llama", "text", "layers", "norm", "mean", norms_last_state=True),
    Family("GPT-2, Falcon, BLOOM", "text", "h", "ln_f", "mean", norms_last_state=True),
    Family("BERT, RoBERTa, MPNet, ELECTRA, DeBERTa", "text", "encoder.layer", None, "cls"),
    Family("DistilBERT", "text", "transformer.layer", None, "cls"),
    Family("CLIP, SigLIP", "image", "encoder.layers", "post_layernorm", "cls"),
    Family("DINOv2, ViT of transformers 4", "image", "encoder.layer", "layernorm", "cls"),
    Family("ViT", "image", "layers", "layernorm", "cls"),
    Family("DINOv3", "image", "model.layer", "norm", "cls"),
    Family("DINOv3 of transformers 4", "image", "layer", "norm", "cls"),
    _TIMM_EVA,
    _TIMM_VIT,
    _TIMM,
)
_added: list[Family] = []


def register_family(family: Family) -> Family:
    """Adds a family, which is tried before those that are there already.

    Raises:
        PerPEFTError: Its kind is unknown, it cannot be told from the others, or it has no blocks and no own vector.
    """
    if family.kind not in KINDS:
        raise PerPEFTError(f"family {family.name}: its kind {family.kind!r} is not one of {', '.join(KINDS)}")
    if family.blocks is None and not (family.model_types and family.pooling == "own"):
        raise PerPEFTError(
            f"family {family.name}: without blocks it needs model_types, which tell it from other encoders, and the "
            "pooling own"
        )
    # A notebook registers its family again.
    _added[:] = [family, *(other for other in _added if (other.name, other.kind) != (family.name, family.kind))]
    return family


def added_families() -> tuple[Family, ...]:
    """The families of `register_family`, for processes that have none yet; to be registered there in this order."""
    return tuple(reversed(_added))


def find_tower(model: nn.Module, kind: str) -> nn.Module:
    """The encoder of one modality: a part of a dual encoder, or the model itself.

    Raises:
        PerPEFTError: The model encodes the other modality.
    """
    types = _model_types(model)
    named = [family.tower for family in _families(kind) if family.tower is not None and family.model_types & types]
    for path in (*named, *_TOWERS[kind]):
        tower = find(model, path)
        if isinstance(tower, nn.Module):
            return tower
    wanted = "pixel_values" if kind == "image" else "input_ids"
    if getattr(model, "main_input_name", wanted) != wanted:
        raise PerPEFTError(
            f"{kind}_encoder: {type(model).__name__} takes {model.main_input_name}; choose an encoder of {kind}s"
        )
    return model


def find_encoder(model: nn.Module, kind: str) -> tuple[nn.Module, Family]:
    """The encoder of one modality, as `find_tower` gives it, and its family.

    Raises:
        PerPEFTError: As `find_tower`, or it has no blocks whose hidden states could be kept.
    """
    encoder = find_tower(model, kind)
    types = _model_types(model) | _model_types(encoder)
    for family in _families(kind):
        if family.fits(encoder, types):
            return encoder, family
    examples = "BERT, Llama or CLIP" if kind == "text" else "ViT, DINOv2, CLIP or SigLIP"
    raise PerPEFTError(
        f"{kind}_encoder: {type(encoder).__name__} has no list of transformer blocks whose hidden states could be "
        f"kept; choose one like {examples}"
    )


def blocks_of(encoder: nn.Module, family: Family) -> list[nn.Module]:
    """The blocks of an encoder, in their order.

    Raises:
        PerPEFTError: They differ in width.
    """
    if family.blocks is None:
        raise PerPEFTError(
            f"{family.kind}_encoder: the stages of {type(encoder).__name__} differ in width, and what reads or adapts "
            f"blocks of one width (IISAN, adapter, lora) cannot use it; {WITHOUT_BLOCKS}"
        )
    return list(find(encoder, family.blocks))


def has_fixed_length(model_type: str) -> bool:
    """Whether models of this type read the text vector from the last slot."""
    return any(family.fixed_length and model_type in family.model_types for family in _families("text"))


def peft_targets(method: str, model: nn.Module | None = None) -> dict[str, list[str]]:
    """Modules that a method of peft adapts unless the user says otherwise, as keys of its configuration.

    Args:
        method: Name of the method in lower case.
        model: An encoder, alone or dual; None for one like CLIP.
    """
    encoders = [] if model is None else [found for kind in KINDS if (found := _encoder_if_any(model, kind))]
    if not encoders:
        return {key: list(names) for key, names in _TARGETS.get(method, _TARGETS[""]).items()}
    chosen: dict[str, list[str]] = {}
    for encoder, family in encoders:
        for key, names in family.targets.get(method, family.targets[""]).items():
            present = [place for name in names for place in _names_in(encoder, family, name)]
            chosen[key] = list(dict.fromkeys([*chosen.get(key, []), *present]))
    return chosen


def _encoder_if_any(model: nn.Module, kind: str) -> tuple[nn.Module, Family] | None:
    try:
        return find_encoder(model, kind)
    except PerPEFTError:  # a tower of another make, whose modules the user names, or an encoder of the other kind
        return None


def _names_in(encoder: nn.Module, family: Family, name: str) -> list[str]:
    """A name, or those of what has its role in blocks that do not know it, none perhaps."""
    if name not in _ROLES or any(place.endswith(f".{name}") for place, _ in encoder.named_modules()):
        return [name]
    if family.blocks is None:
        return []
    role = family.projection(_ROLES[name])
    names = (part for block in find(encoder, family.blocks) for part, _ in block.named_modules())
    return list(dict.fromkeys(part for part in names if re.fullmatch(role, part)))


def _model_types(model: nn.Module) -> frozenset[str]:
    found = find(model, "config.model_type")
    return frozenset() if found is None else frozenset({found})


def _families(kind: str) -> list[Family]:
    """In the order in which they are tried."""
    return [family for family in (*_added, *_BUILT_IN) if family.kind == kind]


def find(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, None if there is none."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
