"""Foundation models of transformers: frozen dual encoders that turn an item's content into a vector."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from recbole_perpeft.core.digest import sha256, tensor_sample
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.pretrained.processor import (
    FIXED_LENGTH_TEXT,
    LOADING_ERRORS,
    Processor,
    cannot_load,
    load_image_processor,
    locate_foundation,
)

__all__ = ["FoundationModel", "Processor", "locate_foundation"]


def _height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    height, width = np.broadcast_to(size, 2)
    return int(height), int(width)


class FoundationModel(nn.Module):
    """A frozen dual encoder of transformers: image and title of an item become one content vector.

    Takes every model with `get_image_features` and `get_text_features` that works from pixels and token ids alone
    (CLIP, SigLIP, ...). Weights are float32, whatever the file holds. Weights never enter a state dict, and strict
    loading does not ask for them: checkpoints keep what was trained.

    Args:
        model: Model of transformers.
        image_mean, image_std, rescale_factor: As in `Processor`.

    Attributes:
        model: The model; `AdapterBank` puts adapters into it.
        content_size: Width of the image vector plus width of the text vector.
        checkpointed: Names of tensors that do enter the state dict.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
    ) -> None:
        super().__init__()
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise PerPEFTError(
                f"foundation_model: {type(model).__name__} does not encode both images and texts; choose a dual "
                "encoder such as CLIP or SigLIP"
            )
        self.model = model.float().requires_grad_(False)
        self.name = str(model.config.name_or_path)
        self.checkpointed: frozenset[str] = frozenset()
        self._uses_mask = model.config.model_type not in FIXED_LENGTH_TEXT
        self._preprocessing = (*image_mean, *image_std, rescale_factor)
        std = torch.tensor(image_std).view(3, 1, 1)
        self.register_buffer("pixel_scale", rescale_factor / std, persistent=False)
        self.register_buffer("pixel_shift", torch.tensor(image_mean).view(3, 1, 1) / std, persistent=False)
        self.register_state_dict_post_hook(drop_frozen_weights)
        self.register_load_state_dict_pre_hook(supply_frozen_weights)
        self.eval()
        self.content_size = self._measure_content()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "FoundationModel":
        """Loads a bundled model, a folder or a hub id.

        Raises:
            PerPEFTError: The folder is incomplete, weights are missing in it, the hub cannot be reached, or the model
                is no dual encoder.
        """
        name = locate_foundation(name_or_path)
        if not Path(name).is_dir():
            LOGGER.info(f"foundation_model: asking the Hugging Face hub for {name}")
        images = load_image_processor(name)
        try:
            model, report = AutoModel.from_pretrained(name, output_loading_info=True)
        except LOADING_ERRORS as error:
            raise cannot_load("model", name, error) from error
        if report["missing_keys"]:
            raise PerPEFTError(
                f"foundation_model: the weights in {name} lack {len(report['missing_keys'])} tensors of "
                f"{type(model).__name__}, {min(report['missing_keys'])} among them; take the complete model"
            )
        return cls(
            model,
            tuple(images.image_mean) if images.do_normalize else (0.0, 0.0, 0.0),
            tuple(images.image_std) if images.do_normalize else (1.0, 1.0, 1.0),
            float(images.rescale_factor) if images.do_rescale else 1.0,
        )

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "FoundationModel":
        """A model with random weights; pixels are mapped to -1 .. 1."""
        return cls(AutoModel.from_config(config))

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of weights and pixel normalisation, the same on every machine; taken before adapters come in."""
        return self.hash_tensors(self.frozen_tensors())

    def hash_tensors(self, tensors: list[Tensor]) -> str:
        """Hash of a set of tensors: sums of their bits as integers, which are exact in any order, and samples."""
        digests = sorted(_digest(tensor) for tensor in tensors)
        return sha256("".join([*digests, repr(self._preprocessing)]).encode())[:16]

    def frozen_tensors(self) -> list[Tensor]:
        """Weights and statistics that a file of the model holds."""
        kept = self.model.state_dict(keep_vars=True).values()
        return list({id(tensor): tensor for tensor in kept if tensor.is_floating_point()}.values())

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encodes items.

        Args:
            pixel_values: uint8 [n, 3, H, W].
            input_ids: int64 [n, T].
            attention_mask: [n, T], 0 at padding; None when there is none.

        Returns:
            float32 [n, content_size]: image vector and text vector, each of length 1.
        """
        pixels = pixel_values.to(self.pixel_scale.dtype).mul_(self.pixel_scale).sub_(self.pixel_shift)
        mask = {"attention_mask": attention_mask} if self._uses_mask else {}
        image = _pooled(self.model.get_image_features(pixel_values=pixels))
        text = _pooled(self.model.get_text_features(input_ids=input_ids, **mask))
        return torch.cat([functional.normalize(part.float(), dim=-1) for part in (image, text)], dim=-1)

    @torch.no_grad()
    def _measure_content(self) -> int:
        vision = getattr(self.model.config, "vision_config", self.model.config)
        height, width = _height_and_width(getattr(vision, "image_size", 224))
        device = self.pixel_scale.device
        try:
            content = self(
                torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device),
                torch.ones(1, 2, dtype=torch.long, device=device),
            )
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise PerPEFTError(
                f"foundation_model: {type(self.model).__name__} does not work from one image and one text alone "
                f"({error}); choose a dual encoder such as CLIP or SigLIP"
            ) from error
        return content.shape[-1]


def _pooled(features) -> Tensor:
    """transformers 4 returns the vectors themselves, transformers 5 an output with them inside."""
    return getattr(features, "pooler_output", features)


def _digest(tensor: Tensor) -> str:
    return sha256(repr((str(tensor.dtype), tuple(tensor.shape))).encode() + tensor_sample(tensor))


def drop_frozen_weights(module: FoundationModel, state_dict: dict, prefix: str, _local_metadata: dict) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        if name.removeprefix(prefix) not in module.checkpointed:
            del state_dict[name]


def supply_frozen_weights(module: FoundationModel, state_dict: dict, prefix: str, *_unused) -> None:
    for name, tensor in module.model.state_dict(prefix="model.").items():
        if name not in module.checkpointed:
            state_dict.setdefault(prefix + name, tensor)
