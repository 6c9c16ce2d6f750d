"""Where the parts of a transformers encoder are, found by role and not by one hard path.

Names of submodules differ between families and between releases: the blocks of a ViT are `encoder.layer` in
transformers 4 and `layers` in transformers 5.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from recbole_perpeft.core.errors import PerPEFTError

KINDS = ("text", "image")
_TOWERS = {"text": ("text_model", "language_model"), "image": ("vision_model", "vision_tower")}
_CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


@dataclass(frozen=True)
class Layout:
    """Submodules of a family of encoders.

    Attributes:
        blocks: path of the list of blocks.
        norm: path of the norm behind the last block, `None` where blocks end with their own.
        pooling: what makes one vector of the tokens, as the family was trained to be read.
        norms_last_state: whether transformers counts the normalised vector as the last hidden state, which decoders
            do and vision encoders do not.
    """

    blocks: str
    norm: str | None
    pooling: str
    norms_last_state: bool = False


# The first whose submodules exist is taken.
_LAYOUTS = {
    "text": (
        Layout("encoder.layers", "final_layer_norm", "eos"),  # CLIP, SigLIP
        Layout("layers", "final_norm", "cls"),  # ModernBERT
        Layout("layers", "norm", "mean", norms_last_state=True),  # Llama, Mistral, Mixtral, Gemma, Qwen, Phi
        Layout("h", "ln_f", "mean", norms_last_state=True),  # GPT-2, Falcon, BLOOM
        Layout("encoder.layer", None, "cls"),  # BERT, RoBERTa, MPNet, ELECTRA, DeBERTa
        Layout("transformer.layer", None, "cls"),  # DistilBERT
    ),
    "image": (
        Layout("encoder.layers", "post_layernorm", "cls"),  # CLIP, SigLIP
        Layout("encoder.layer", "layernorm", "cls"),  # DINOv2, ViT of transformers 4
        Layout("layers", "layernorm", "cls"),  # ViT of transformers 5
        Layout("model.layer", "norm", "cls"),  # DINOv3
        Layout("layer", "norm", "cls"),  # DINOv3 of transformers 4
    ),
}


def find_tower(model: nn.Module, kind: str) -> nn.Module:
    """The encoder of one modality: a part of a dual encoder, or the model itself.

    Raises:
        PerPEFTError: the model encodes the other modality.
    """
    for name in _TOWERS[kind]:
        tower = find(model, name)
        if isinstance(tower, nn.Module):
            return tower
    wanted = "pixel_values" if kind == "image" else "input_ids"
    if getattr(model, "main_input_name", wanted) != wanted:
        raise PerPEFTError(
            f"{kind}_encoder: {type(model).__name__} takes {model.main_input_name}; choose an encoder of {kind}s"
        )
    return model


def find_layout(tower: nn.Module, kind: str) -> Layout:
    """The layout of an encoder.

    Raises:
        PerPEFTError: it has no blocks whose hidden states could be kept.
    """
    for layout in _LAYOUTS[kind]:
        blocks = find(tower, layout.blocks)
        has_norm = layout.norm is None or find(tower, layout.norm) is not None
        if isinstance(blocks, nn.ModuleList) and len(blocks) and has_norm:
            return layout
    raise PerPEFTError(
        f"{kind}_encoder: {type(tower).__name__} has no list of transformer blocks whose hidden states could be kept; "
        + ("choose one like BERT, Llama or CLIP" if kind == "text" else "choose one like ViT, DINOv2, CLIP or SigLIP")
    )


def has_class_token(tower: nn.Module) -> bool:
    """Whether a vision encoder puts a class token before the patches; SigLIP does not."""
    embeddings = getattr(tower, "embeddings", tower)
    return any(hasattr(embeddings, name) for name in _CLASS_TOKENS)


def find(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path, `None` if there is none."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
