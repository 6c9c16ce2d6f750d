"""One encoder of transformers for one modality, with its hidden states: BERT, Llama, ViT, a tower of CLIP ..."""

import importlib.util
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.pretrained.dual import drop_frozen_weights, supply_frozen_weights
from recbole_perpeft.pretrained.fingerprint import weights_fingerprint
from recbole_perpeft.pretrained.layers import KINDS, find, find_layout, find_tower, has_class_token
from recbole_perpeft.pretrained.processor import (
    FIXED_LENGTH_TEXT,
    LOADING_ERRORS,
    cannot_load,
    load_image_processor,
    locate_encoder,
)

POOLINGS = {"text": ("cls", "mean", "mean_all", "eos"), "image": ("cls", "mean")}
QUANTIZATIONS = ("8bit", "4bit")


class BackboneOutput(NamedTuple):
    """What an encoder makes of n items with T tokens each.

    Attributes:
        hidden_states: L + 1 tensors [n, T, d]: output of the embedding, then of every block. That of the last block
            is normalised where transformers counts it so (decoders).
        last: output of the last block after the norm that follows it, if there is one, [n, T, d].
    """

    hidden_states: tuple[Tensor, ...]
    last: Tensor


class BackboneDescription(NamedTuple):
    """What can be said of an encoder without loading its weights."""

    fingerprint: str
    n_layers: int
    width: int


class Backbone(nn.Module):
    """A frozen encoder of texts or images, in eval mode. Weights enter a state dict only if `checkpointed` names them.

    Args:
        model: Encoder of transformers, or a dual encoder, whose tower is taken.
        kind: `text` or `image`.
        image_mean, image_std, rescale_factor: As in `Processor`.

    Attributes:
        model: The encoder or tower.
        layers: Its blocks.
        n_layers: Number of blocks, L.
        width: Size of a hidden state, d.
        pooling: How its tokens are meant to become one vector: class token (BERT, ViT, CLIP images), end token (CLIP
            texts), mean (Llama and other decoders, SigLIP images).
        checkpointed: Names of tensors that do enter the state dict.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kind: str,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise PerPEFTError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
        self.kind = kind
        self.model = find_tower(model, kind)
        self._layout = find_layout(self.model, kind)
        if kind == "image" and isinstance(getattr(self.model, "pooler", None), nn.Module):
            self.model.pooler = None  # random in the published ViT checkpoints, and never read
        if not getattr(model, "is_quantized", False):
            self.model.float()
        self.model.requires_grad_(False)
        self.model.config.use_cache = False
        self.n_layers = len(self.layers)
        self.width = int(self.model.config.hidden_size)
        self._reads_last_slot = model.config.model_type in FIXED_LENGTH_TEXT
        has_token = kind == "text" or has_class_token(self.model)
        self._poolings = tuple(name for name in POOLINGS[kind] if name != "cls" or has_token)
        self.pooling = self._layout.pooling if has_token else "mean"
        self.checkpointed: frozenset[str] = frozenset()
        std = torch.tensor(image_std).view(3, 1, 1)
        self.register_buffer("pixel_scale", rescale_factor / std, persistent=False)
        self.register_buffer("pixel_shift", torch.tensor(image_mean).view(3, 1, 1) / std, persistent=False)
        self.register_state_dict_post_hook(drop_frozen_weights)
        self.register_load_state_dict_pre_hook(supply_frozen_weights)
        self.eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, kind: str, quantization: str | None = None) -> "Backbone":
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
        if not Path(name).is_dir():
            LOGGER.info(f"{key}: asking the Hugging Face hub for {name}")
        preprocessing = _pixel_preprocessing(name, key) if kind == "image" else ()
        try:
            model, report = AutoModel.from_pretrained(name, output_loading_info=True, **_quantized(quantization, key))
        except (*LOADING_ERRORS, ImportError) as error:
            raise cannot_load("model", name, error, key) from error
        missing = [tensor for tensor in report["missing_keys"] if "pooler" not in tensor]
        if missing:
            raise PerPEFTError(
                f"{key}: the weights in {name} lack {len(missing)} tensors of {type(model).__name__}, {min(missing)} "
                "among them; take the complete model"
            )
        return cls(model, kind, *preprocessing)

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
        try:
            config = AutoConfig.from_pretrained(name)
            with torch.device("meta"):
                model = AutoModel.from_config(config)
        except (*LOADING_ERRORS, ImportError) as error:
            raise cannot_load("configuration", name, error, key) from error
        return cls(model, kind)

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in their order."""
        return list(find(self.model, self._layout.blocks))

    def forward(self, **inputs: Tensor) -> BackboneOutput:
        """Encodes items, keeping every hidden state.

        Args:
            inputs: `input_ids` and `attention_mask` [n, T], or `pixel_values` uint8 [n, 3, H, W].
        """
        states, last = self._run(inputs, range(self.n_layers + 1), lambda state: state)
        return BackboneOutput(tuple(states[index] for index in range(self.n_layers + 1)), last)

    def pooled_states(self, layers: Collection[int], pooling: str, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes items; every state is pooled as soon as it is there, so that one at a time takes memory.

        Args:
            layers: Indexes of states, ascending; 0 is the output of the embedding.
            pooling: As in `pooled`. For `mean_all`, the encoder sees padding as if it were text.
            inputs: As in `forward`.

        Returns:
            The states [n, len(layers), d] and the last one after the final norm [n, d].
        """
        mask = inputs.get("attention_mask")
        if pooling == "mean_all":
            inputs = {name: values for name, values in inputs.items() if name != "attention_mask"}
        states, last = self._run(inputs, layers, lambda state: self.pooled(state, pooling, mask))
        final = self.pooled(last, pooling, mask)
        stacked = [states[index] for index in layers]
        return torch.stack(stacked, dim=1) if stacked else final.new_empty(len(final), 0, self.width), final

    def pooled(self, states: Tensor, pooling: str | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """One vector an item.

        Args:
            states: [n, T, d]
            pooling: `cls` (first token), `eos` (last token that is no padding), `mean` (of the tokens that are no
                padding), `mean_all` (of all slots, as the authors of IISAN-Versa pool Llama); None for the usual one
                of this encoder.
            attention_mask: [n, T], 0 at padding; None when there is none.

        Returns:
            [n, d]

        Raises:
            PerPEFTError: The encoder cannot be pooled so.
        """
        pooling = self.check_pooling(pooling)
        if pooling == "cls":
            return states[:, 0]
        if pooling == "mean_all" or (pooling == "mean" and attention_mask is None):
            return states.mean(dim=1)
        if pooling == "mean":
            weights = attention_mask.to(states.dtype)
            return torch.einsum("ntd,nt->nd", states, weights / weights.sum(dim=1, keepdim=True))
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

    def _run(
        self, inputs: dict[str, Tensor], layers: Collection[int], keep: Callable[[Tensor], Tensor]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """States by index, as `keep` turns them, and the last one after the final norm."""
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"].to(self.pixel_scale.dtype) * self.pixel_scale - self.pixel_shift
            inputs = inputs | {"pixel_values": pixels}
        elif self._reads_last_slot:
            inputs = {name: values for name, values in inputs.items() if name != "attention_mask"}
        with self._watched_blocks(layers, keep) as (states, last_output):
            self.model(**inputs)
        last = last_output[0]
        if self._layout.norm is not None:
            last = find(self.model, self._layout.norm)(last)
        if self.n_layers in layers:
            states[self.n_layers] = keep(last if self._layout.norms_last_state else last_output[0])
        return states, last

    @contextmanager
    def _watched_blocks(
        self, layers: Collection[int], keep: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[dict[int, Tensor], list[Tensor]]]:
        """Gathers what goes into the first block and comes out of the others, while the encoder runs.

        `output_hidden_states` would hold all of them at once, and its last one means another thing in another release.
        """
        states: dict[int, Tensor] = {}
        last_output: list[Tensor] = []
        blocks = self.layers

        def before_first(_block: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            states[0] = keep(arguments[0] if arguments else named["hidden_states"])

        def after(index: int) -> Callable[..., None]:
            def record(_block: nn.Module, _arguments: tuple, output: Any) -> None:
                states[index] = keep(_tensor_of(output))

            return record

        def after_last(_block: nn.Module, _arguments: tuple, output: Any) -> None:
            last_output.append(_tensor_of(output))

        handles = [blocks[-1].register_forward_hook(after_last)]
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
    fingerprint = weights_fingerprint(locate_encoder(name_or_path, kind), kind, stamp_folder)
    return BackboneDescription(fingerprint, shape.n_layers, shape.width)


def _tensor_of(output: Any) -> Tensor:
    """Blocks return their tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _pixel_preprocessing(name: str, key: str) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean, standard deviation and factor of the pixels, as in `Processor`."""
    images = load_image_processor(name, key)
    return (
        tuple(images.image_mean) if images.do_normalize else (0.0, 0.0, 0.0),
        tuple(images.image_std) if images.do_normalize else (1.0, 1.0, 1.0),
        float(images.rescale_factor) if images.do_rescale else 1.0,
    )


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
