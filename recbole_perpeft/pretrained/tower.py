"""One encoder of transformers for one modality, with its hidden states: BERT, Llama, ViT, a tower of CLIP ..."""

import importlib.util
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.families import KINDS, added_families, blocks_of, find, find_encoder, has_fixed_length
from recbole_perpeft.pretrained.frozen import FrozenModel, load_weights
from recbole_perpeft.pretrained.locate import load_part, loading, locate_encoder, weights_fingerprint
from recbole_perpeft.pretrained.processor import CENTRED, Pixels, load_image_processor, pixels_of

POOLINGS = {"text": ("cls", "mean", "mean_all", "eos"), "image": ("cls", "mean", "own")}
Own = TypeVar("Own", bound="Backbone")
QUANTIZATIONS = ("8bit", "4bit")


class BackboneDescription(NamedTuple):
    """What can be said of an encoder without loading its weights; without blocks of one width, `n_layers` is 0."""

    fingerprint: str
    n_layers: int
    width: int


class EncodedItems(NamedTuple):
    """What an encoder makes of n items with T tokens each.

    Attributes:
        states: What was to be kept of hidden states, by index; 0 is the output of the embedding. That of the last
            block is normalised where transformers counts it so (decoders).
        last: Output of the last block after the norm that follows it, if there is one, [n, T, d].
        own: Vector of the encoder's own head, [n, d], if it has one.
    """

    states: dict[int, Tensor]
    last: Tensor
    own: Tensor | None


class Backbone(FrozenModel):
    """A frozen encoder of texts or images, in eval mode.

    Args:
        model: Encoder of transformers, or a dual encoder, whose tower is taken.
        kind: `text` or `image`.
        pixels: How the bytes of images are normalised; unless given, they are mapped to -1 .. 1.

    Attributes:
        model: The encoder or tower.
        family: What depends on how it is built.
        kinds: `kind` alone.
        layers: Its blocks.
        n_layers: Number of blocks, L; 0 where they differ in width: then it gives final vectors alone.
        width: Size of a hidden state, d; without blocks, that of a final vector.
        pooling: How its tokens are meant to become one vector: class token (BERT, ViT, CLIP images), end token (CLIP
            texts), mean (Llama and other decoders, SigLIP images), its own head.
    """

    def __init__(self, model: PreTrainedModel, kind: str, pixels: Pixels = CENTRED) -> None:
        if kind not in KINDS:
            raise PerPEFTError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
        encoder, family = find_encoder(model, kind)
        super().__init__(encoder, pixels)
        self.kind, self.kinds = kind, (kind,)
        self.family = family
        reads_head = family.blocks is None
        if kind == "image" and not reads_head and isinstance(getattr(encoder, "pooler", None), nn.Module):
            self.model.pooler = None  # random in the published ViT checkpoints, and never read
        if not getattr(model, "is_quantized", False):
            self.model.float()
        self.model.requires_grad_(False)
        self.model.config.use_cache = False
        if getattr(self.model.config, "mask_ratio", None):
            self.model.config.mask_ratio = 0.0  # ViT-MAE leaves patches out by chance, in evaluation too
        self.n_layers = 0 if family.blocks is None else len(self.layers)
        self.width = int(np.atleast_1d(find(self.model, family.width))[-1])
        self._reads_last_slot = has_fixed_length(model.config.model_type)
        self._poolings = self._possible_poolings()
        self.pooling = family.pooling if family.pooling in self._poolings else "mean"
        self.eval()

    def _possible_poolings(self) -> tuple[str, ...]:
        if self.family.blocks is None:
            return ("own",)
        lacks = {"own"} if self.family.own_pooling is None else set()
        if self.kind == "image" and not self.family.has_class_token(self.model):
            lacks.add("cls")
        return tuple(name for name in POOLINGS[self.kind] if name not in lacks)

    @classmethod
    def from_pretrained(cls: type[Own], name_or_path: str | Path, kind: str, quantization: str | None = None) -> Own:
        """Loads a bundled model, `minilm`, a folder or a hub id.

        Args:
            name_or_path: As in `locate_encoder`.
            kind: `text` or `image`.
            quantization: `8bit` or `4bit` with bitsandbytes on a GPU; None for float32, or as the files are quantised.

        Raises:
            PerPEFTError: The folder is incomplete, weights are missing in it, the hub cannot be reached, the model is
                no encoder of this kind, or it cannot be quantised here.
        """
        name, key = locate_encoder(name_or_path, kind), f"{kind}_encoder"
        with loading("image processor", name, key):
            pixels = pixels_of(load_image_processor(name, key)) if kind == "image" else CENTRED
        with loading("model", name, key):
            model, _ = load_weights(AutoModel, name, key, unused="pooler", **_quantized(quantization, key))
            return cls(model, kind, pixels)

    @classmethod
    def from_config(cls, hf_config: PretrainedConfig, kind: str) -> "Backbone":
        """A model with random weights; pixels are mapped to -1 .. 1.

        Raises:
            PerPEFTError: It is no encoder of this kind.
        """
        return cls(AutoModel.from_config(hf_config), kind)

    @classmethod
    def skeleton(cls, name_or_path: str | Path, kind: str) -> "Backbone":
        """The encoder without weights, on the meta device: its shape costs no memory.

        Raises:
            PerPEFTError: As `from_pretrained`.
        """
        name, key = locate_encoder(name_or_path, kind), f"{kind}_encoder"
        config = load_part("configuration", AutoConfig, name, key)
        with loading("configuration", name, key), torch.device("meta"):
            return cls(AutoModel.from_config(config), kind)

    def train(self, mode: bool = True) -> "Backbone":
        """As in `nn.Module`, but statistics of batch norms, which no checkpoint holds, stay those of the files."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in their order.

        Raises:
            PerPEFTError: They differ in width.
        """
        return blocks_of(self.model, self.family)

    @property
    def norm(self) -> nn.Module | None:
        """The norm behind the last block; None where blocks end with their own."""
        return None if self.family.norm is None else find(self.model, self.family.norm)

    def pooled_states(self, layers: Collection[int], pooling: str, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes items; every state is pooled as soon as it is there, so that one at a time takes memory.

        Args:
            layers: Indexes of states, ascending; 0 is the output of the embedding.
            pooling: As in `pooled`. For `mean_all`, the encoder sees padding as if it were text, of token 0
                as the authors of IISAN-Versa pad.
            inputs: `input_ids` and `attention_mask` [n, T], or `pixel_values` uint8 [n, 3, H, W].

        Returns:
            The states [n, len(layers), d] and the last one after the final norm [n, d].
        """
        mask = inputs.get("attention_mask")
        if pooling == "mean_all":
            inputs = {name: values for name, values in inputs.items() if name != "attention_mask"}
            if mask is not None:
                inputs["input_ids"] = inputs["input_ids"] * mask
        encoded = self.encode(layers, lambda state: self.pooled(state, pooling, mask), **inputs)
        if pooling == "own" and encoded.own is not None:
            final = encoded.own.flatten(1)
        else:
            final = self.pooled(encoded.last, pooling, mask)
        stacked = [encoded.states[index] for index in layers]
        return torch.stack(stacked, dim=1) if stacked else final.new_empty(len(final), 0, self.width), final

    def pooled(self, states: Tensor, pooling: str | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """One vector an item.

        Args:
            states: [n, T, d]
            pooling: `cls` (first token), `eos` (last token that is no padding), `mean` (of the tokens that are no
                padding), `mean_all` (of all slots, as the authors of IISAN-Versa pool Llama), `own` (as its head
                does); None for the usual one of this encoder.
            attention_mask: [n, T], 0 at padding; None when there is none.

        Returns:
            [n, d]

        Raises:
            PerPEFTError: The encoder cannot be pooled so.
        """
        pooling = self.check_pooling(pooling)
        if pooling == "cls":
            return states[:, 0]
        if pooling == "own":
            if self.family.own_pooling is None:
                raise PerPEFTError(f"{self.kind}_encoder: {type(self.model).__name__} gives no vector of its own")
            return find(self.model, self.family.own_pooling)(states)
        if pooling == "mean" and attention_mask is not None:
            weights = attention_mask.to(states.dtype)
            return torch.einsum("ntd,nt->nd", states, weights / weights.sum(dim=1, keepdim=True))
        if pooling in ("mean", "mean_all"):
            return states.mean(dim=1)
        if attention_mask is None or self._reads_last_slot:
            return states[:, -1]
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), last]

    def check_pooling(self, pooling: str | None) -> str:
        """The name of a pooling, the usual one for None.

        Raises:
            PerPEFTError: The encoder cannot be pooled so.
        """
        if pooling is None:
            return self.pooling
        if pooling not in self._poolings:
            raise PerPEFTError(
                f"{self.kind}_pooling: {pooling!r} does not go with {type(self.model).__name__}; "
                f"choose one of {', '.join(self._poolings)}"
            )
        return pooling

    def encode(self, layers: Collection[int], keep: Callable[[Tensor], Tensor], **inputs: Tensor) -> EncodedItems:
        """Encodes items.

        Args:
            layers: Indexes of the states that are kept, as in `pooled_states`.
            keep: What is kept of a state [n, T, d].
            inputs: As in `pooled_states`.
        """
        if "pixel_values" in inputs:
            inputs = inputs | {"pixel_values": self.normalised(inputs["pixel_values"])}
        elif self._reads_last_slot:
            inputs = {name: values for name, values in inputs.items() if name != "attention_mask"}
        with self._watched_blocks(layers, keep) as (states, last_output):
            output = self.model(**inputs)
        last = last_output[0] if last_output else output.last_hidden_state
        if self.norm is not None:
            last = self.norm(last)
        if self.n_layers in layers:
            states[self.n_layers] = keep(last if self.family.norms_last_state else last_output[0])
        return EncodedItems(states, last, getattr(output, "pooler_output", None))

    @contextmanager
    def _watched_blocks(
        self, layers: Collection[int], keep: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[dict[int, Tensor], list[Tensor]]]:
        """Gathers what goes into the first block and comes out of the others, while the encoder runs.

        `output_hidden_states` would hold all of them at once, and its last one means another thing in another release.
        """
        states: dict[int, Tensor] = {}
        last_output: list[Tensor] = []
        blocks = self.layers if self.n_layers or layers else []

        def before_first(_block: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            states[0] = keep(arguments[0] if arguments else named["hidden_states"])

        def after(index: int) -> Callable[..., None]:
            def record(_block: nn.Module, _arguments: tuple, output: Any) -> None:
                states[index] = keep(_tensor_of(output))

            return record

        def after_last(_block: nn.Module, _arguments: tuple, output: Any) -> None:
            last_output.append(_tensor_of(output))

        handles = [block.register_forward_hook(after_last) for block in blocks[-1:]]
        for index in layers:
            if index == 0:
                handles.append(blocks[0].register_forward_pre_hook(before_first, with_kwargs=True))
            elif index < self.n_layers:
                handles.append(blocks[index - 1].register_forward_hook(after(index)))
        try:
            yield states, last_output
        finally:
            for handle in handles:
                handle.remove()


class PooledTower(Backbone):
    """A frozen encoder that turns items into pooled vectors, to be adapted like a dual encoder.

    Attributes:
        fingerprint: Identifies the weights, and how a plugin reads them.
        content_size: Width of a vector.
    """

    fingerprint: str
    content_size: int

    @classmethod
    def load(
        cls, name_or_path: str | Path, kind: str, pooling: str | None = None, stamp_folder: Path | None = None
    ) -> "PooledTower":
        """Loads an encoder.

        Args:
            name_or_path: As in `locate_encoder`.
            kind: `text` or `image`.
            pooling: As in `Backbone.pooled`.
            stamp_folder: As in `describe_backbone`.

        Raises:
            PerPEFTError: As `Backbone.from_pretrained`, or the encoder cannot be pooled so.
        """
        tower = cls.from_pretrained(name_or_path, kind)
        tower.pooling = tower.check_pooling(pooling)
        tower.fingerprint = _fingerprint(tower, name_or_path, stamp_folder)
        tower.content_size = tower.width
        return tower

    def forward(self, **inputs: Tensor) -> Tensor:
        """Vectors of items, float32 [n, content_size]; inputs as in `pooled_states`."""
        return self.pooled_states((), self.pooling, **inputs)[1].float()


def describe_backbone(name_or_path: str | Path, kind: str, stamp_folder: Path | None = None) -> BackboneDescription:
    """Identifies an encoder without loading its weights.

    Args:
        name_or_path: As in `locate_encoder`.
        kind: `text` or `image`.
        stamp_folder: Where hashes of weight files are remembered; None hashes them anew.

    Raises:
        PerPEFTError: As `Backbone.from_pretrained`.
    """
    shape = Backbone.skeleton(name_or_path, kind)
    return BackboneDescription(_fingerprint(shape, name_or_path, stamp_folder), shape.n_layers, shape.width)


def _fingerprint(backbone: Backbone, name_or_path: str | Path, stamp_folder: Path | None) -> str:
    """That of weights and configuration, and of how a plugin says that they are read."""
    weights = weights_fingerprint(locate_encoder(name_or_path, backbone.kind), backbone.kind, stamp_folder)
    return value_hash([weights, backbone.family.reading]) if backbone.family in added_families() else weights


def _tensor_of(output: Any) -> Tensor:
    """Blocks return their tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _quantized(quantization: str | None, key: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise PerPEFTError(f"quantization: {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    if not torch.cuda.is_available():
        raise PerPEFTError(f"{key}: quantization {quantization} needs a GPU, and there is none; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PerPEFTError(f"{key}: quantization {quantization} needs bitsandbytes; pip install bitsandbytes")
    settings = (
        BitsAndBytesConfig(load_in_4bit=True) if quantization == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": settings, "device_map": {"": 0}}
