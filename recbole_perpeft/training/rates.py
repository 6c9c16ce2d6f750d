"""Training of recommenders that read item content."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.training.trainer import RunTrainer

__all__ = ["ContentTrainer", "LearningRateSettings"]


@dataclass(frozen=True)
class LearningRateSettings:
    """Learning rates by group of parameters; the defaults are those of IISAN's authors.

    Args:
        learning_rate: Of everything that no other key names.
        param_groups: `official` for the groups of the IISAN papers, `uniform` for one learning rate.
        lr_side_text: Of what a method puts beside or into the text encoder.
        lr_side_image: The same for the image encoder.
        lr_backbone_text: Of the text encoder's own parameters.
        lr_backbone_image: The same for the image encoder.

    Raises:
        PerPEFTError: If a rate is not a positive number.
    """

    learning_rate: float
    param_groups: Literal["official", "uniform"] = "uniform"
    lr_side_text: float = 1e-4
    lr_side_image: float = 1e-4
    lr_backbone_text: float = 5e-5
    lr_backbone_image: float = 1e-4

    def __post_init__(self) -> None:
        for key in ("learning_rate", "lr_side_text", "lr_side_image", "lr_backbone_text", "lr_backbone_image"):
            if not 0 < getattr(self, key) < float("inf"):
                raise PerPEFTError(f"{key} must be a finite number above 0, got {getattr(self, key)}")

    def groups(self, model: Any) -> Iterable[Any]:
        """Parameters of a model as optimisers take them.

        Args:
            model: A `ContentRecommender`.
        """
        if self.param_groups == "uniform":
            return model.parameters()
        rates = {
            "recsys": self.learning_rate,
            "side_text": self.lr_side_text,
            "side_image": self.lr_side_image,
            "backbone_text": self.lr_backbone_text,
            "backbone_image": self.lr_backbone_image,
        }
        encoder = model.item_encoder.content_encoder
        group_of = {id(encoder.get_parameter(name)): group for name, group in encoder.parameter_groups().items()}
        members: dict[str, list[nn.Parameter]] = {group: [] for group in rates}
        for parameter in model.parameters():
            if parameter.requires_grad:
                members[group_of.get(id(parameter), "recsys")].append(parameter)
        return [{"params": some, "lr": rates[group]} for group, some in members.items() if some]


class ContentTrainer(RunTrainer):
    """Trains a `ContentRecommender` in one stage."""

    def _build_optimizer(self, **kwargs):
        """As in RecBole, with a learning rate for each group of parameters."""
        kwargs.setdefault("params", settings_from(self.config, LearningRateSettings).groups(self.model))
        return super()._build_optimizer(**kwargs)

    def _on_device(self, interaction):
        """The batch as it is: the model sorts out its ids on the CPU."""
        return interaction
