"""Foundation models of transformers: frozen dual encoders that turn an item's content into a vector."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from recbole_perpeft.core.digest import sha256, tensor_sample
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.pretrained.families import KINDS, has_fixed_length
from recbole_perpeft.pretrained.frozen import FrozenModel, load_weights
from recbole_perpeft.pretrained.locate import configuration_digest, loading, locate_foundation
from recbole_perpeft.pretrained.processor import CENTRED, Pixels, load_image_processor, pixels_of


def _height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    height, width = np.broadcast_to(size, 2)
    return int(height), int(width)


class FoundationModel(FrozenModel):
    """A frozen dual encoder of transformers: image and title of an item become one content vector.

    Takes every model with `get_image_features` and `get_text_features` that works from pixels and token ids alone
    (CLIP, SigLIP, ...). Weights are float32, whatever the file holds.

    Args:
        model: Model of transformers; `AdapterBank` puts adapters into it.
        pixels: How the bytes of images are normalised; unless given, they are mapped to -1 .. 1.
        configuration: Identifies the configuration in a file of the model; empty where there is none.

    Attributes:
        kinds: `text` and `image`.
        content_size: Width of the image vector plus width of the text vector.
    """

    def __init__(self, model: PreTrainedModel, pixels: Pixels = CENTRED, configuration: str = "") -> None:
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise PerPEFTError(
                f"foundation_model: {type(model).__name__} does not encode both images and texts; choose a dual "
                "encoder such as CLIP or SigLIP"
            )
        super().__init__(model.float().requires_grad_(False), pixels)
        self.kinds = KINDS
        self.name = str(model.config.name_or_path)
        self._uses_mask = not has_fixed_length(model.config.model_type)
        self._pixels = pixels
        self._configuration = configuration
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
        with loading("image processor", name, "foundation_model"):
            pixels = pixels_of(load_image_processor(name))
        with loading("model", name, "foundation_model"):
            model = load_weights(AutoModel, name, "foundation_model")[0]
            return cls(model, pixels, configuration_digest(name, "foundation_model"))

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "FoundationModel":
        """A model with random weights; pixels are mapped to -1 .. 1."""
        return cls(AutoModel.from_config(config))

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of weights and pixel normalisation, the same on every machine; taken before adapters come in.

        After a dot comes that of the configuration, if there is a file of it.
        """
        weights = self.hash_tensors(self.frozen_tensors())
        return f"{weights}.{self._configuration}" if self._configuration else weights

    def hash_tensors(self, tensors: list[Tensor]) -> str:
        """Hash of a set of tensors in any order, and of the pixel normalisation."""
        digests = sorted(_digest(tensor) for tensor in tensors)
        pixels = (*self._pixels.mean, *self._pixels.std, self._pixels.factor)
        return sha256("".join([*digests, repr(pixels)]).encode())[:16]

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
        mask = {"attention_mask": attention_mask} if self._uses_mask else {}
        image = _pooled(self.model.get_image_features(pixel_values=self.normalised(pixel_values)))
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
        if not content.is_meta and not content.isfinite().all():
            raise PerPEFTError(f"foundation_model: the weights of {self.name} make no finite numbers; get them again")
        return content.shape[-1]


def check_same_foundation(known: str, own: str) -> None:
    """Compare the fingerprint that a checkpoint knows with that of the model at hand; warn of another configuration.

    Args:
        known: As `FoundationModel.fingerprint`, or by version 0.1.0, which left the configuration out.
        own: The same of the model.

    Raises:
        PerPEFTError: The weights are others.
    """
    if known.partition(".")[0] != own.partition(".")[0]:
        raise PerPEFTError(
            f"the checkpoint was trained on other foundation weights ({known}) than those loaded ({own}); give the "
            "same foundation_model"
        )
    if "." in known and known != own:
        LOGGER.warning(
            f"the configuration of the foundation model is not that of the training ({known}, now {own}): its "
            "activations, heads or special tokens may be others, and its vectors too"
        )


def _pooled(features: Any) -> Tensor:
    """transformers 4 returns the vectors themselves, transformers 5 an output with them inside."""
    return getattr(features, "pooler_output", features)


def _digest(tensor: Tensor) -> str:
    return sha256(repr((str(tensor.dtype), tuple(tensor.shape))).encode() + tensor_sample(tensor))
