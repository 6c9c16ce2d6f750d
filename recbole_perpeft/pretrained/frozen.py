"""What pretrained models share: weights that stay out of checkpoints and must all be there, and pixels as bytes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.pretrained.locate import load_part
from recbole_perpeft.pretrained.processor import Pixels


class FrozenModel(nn.Module):
    """Holds a pretrained model. Its weights never enter a state dict, and strict loading does not ask for them.

    Args:
        model: Model of transformers.
        pixels: How the bytes of its images are normalised; None without images.

    Attributes:
        model: The model.
        checkpointed: Names of tensors that do enter the state dict, because they are trained.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, model: PreTrainedModel | nn.Module, pixels: Pixels | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.checkpointed: frozenset[str] = frozenset()
        if pixels is not None:
            std = torch.tensor(pixels.std).view(3, 1, 1)
            self.register_buffer("pixel_scale", pixels.factor / std, persistent=False)
            self.register_buffer("pixel_shift", torch.tensor(pixels.mean).view(3, 1, 1) / std, persistent=False)
        self.register_state_dict_post_hook(_drop_frozen_weights)
        self.register_load_state_dict_pre_hook(_supply_frozen_weights)

    def normalised(self, pixel_values: Tensor) -> Tensor:
        """What the model reads of uint8 images [n, 3, H, W], float32."""
        return pixel_values.to(self.pixel_scale.dtype).mul_(self.pixel_scale).sub_(self.pixel_shift)


def load_weights(loader: Any, name: str, key: str, unused: str | None = None, **options: Any) -> tuple[Any, dict]:
    """A model with all its weights.

    Args:
        loader: A class of transformers with `from_pretrained`.
        name: Folder or hub id, as `locate_model` gives it.
        key: The configuration key that names the model, for messages.
        unused: Part of the names of tensors that may be missing.
        **options: Passed to `from_pretrained`.

    Returns:
        The model, and what transformers reports about its keys.

    Raises:
        PerPEFTError: transformers cannot load it, or weights are missing.
    """
    if not Path(name).is_dir():
        LOGGER.info(f"{key}: asking the Hugging Face hub for {name}")
    model, report = load_part("model", loader, name, key, output_loading_info=True, **options)
    missing = [tensor for tensor in report["missing_keys"] if unused is None or unused not in tensor]
    if missing:
        raise PerPEFTError(
            f"{key}: the weights in {name} lack {len(missing)} tensors of {type(model).__name__}, {min(missing)} "
            "among them; take the complete model"
        )
    return model, report


def _drop_frozen_weights(module: FrozenModel, state_dict: dict, prefix: str, _local_metadata: dict) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        if name.removeprefix(prefix) not in module.checkpointed:
            del state_dict[name]


def _supply_frozen_weights(module: FrozenModel, state_dict: dict, prefix: str, *_unused: Any) -> None:
    for name, tensor in module.model.state_dict(prefix="model.").items():
        if name not in module.checkpointed:
            state_dict.setdefault(prefix + name, tensor)
