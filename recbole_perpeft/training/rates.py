"""Training of recommenders that read item content."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Settings, same_as, setting, settings_from
from recbole_perpeft.training.optimisers import OF_TABLES, Together, sparse_tables, without
from recbole_perpeft.training.schedule import ScheduledTrainer

__all__ = ["ContentTrainer", "LearningRateSettings"]


@dataclass(frozen=True)
class LearningRateSettings(Settings):
    """Learning rates by group of parameters; the defaults are those of IISAN's authors."""

    learning_rate: float = same_as(RunSettings, "learning_rate")
    param_groups: Literal["official", "uniform"] = setting(
        "uniform", "official learning rates by group (the IISAN papers), or uniform: learning_rate for all."
    )
    lr_side_text: float = setting(1e-4, "Of what is put beside or into the text encoder.", above=0, kind="rate")
    lr_side_image: float = setting(1e-4, "The same for the image encoder.", above=0, kind="rate")
    lr_backbone_text: float = setting(5e-5, "Of the text encoder's own weights.", above=0, kind="rate")
    lr_backbone_image: float = setting(1e-4, "Of the image encoder's own weights.", above=0, kind="rate")

    def check(self) -> None:
        """Content models start from nothing, which a rate of 0 would leave as it is."""
        if self.learning_rate == 0:
            raise PerPEFTError("learning_rate is 0.0: it must be a finite number, above 0")

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


class ContentTrainer(ScheduledTrainer):
    """Trains a `ContentRecommender` in one stage."""

    settings_classes = (LearningRateSettings,)

    @property
    def learning_rates(self) -> LearningRateSettings:
        """Those of an optimiser that is built now."""
        return settings_from(self.config, LearningRateSettings)

    def _build_optimizer(self, **kwargs):
        """As in RecBole, with a learning rate for each group of parameters, and without decay of sparse tables."""
        rates = self.learning_rates
        kwargs = {"params": rates.groups(self.model), "learning_rate": rates.learning_rate} | kwargs
        tables = sparse_tables(self.model)
        if not tables:
            return super()._build_optimizer(**kwargs)
        rest = super()._build_optimizer(**kwargs | {"params": without(kwargs["params"], tables)})
        learner = OF_TABLES[self.learner.lower()]
        of_tables = super()._build_optimizer(
            **kwargs | {"params": tables, "learner": learner, "weight_decay": 0.0, "fused": False}
        )
        return Together([rest, of_tables])

    def _on_device(self, interaction):
        """The batch as it is: the model sorts out its ids on the CPU."""
        return interaction

    def _full_sort_batch_eval(self, batched_data):
        """As in RecBole; where ranks are all that is asked for, the collector gets them, and there are no scores."""
        interaction, masked, positive_u, positive_i = batched_data
        has_one_a_row = torch.equal(positive_u, torch.arange(len(interaction)))
        if self.eval_collector.needs_scores or not has_one_a_row or not self.model.scores_are_products:
            return super()._full_sort_batch_eval(batched_data)
        ranks = self.model.ranks_of(interaction.to(self.device), masked, positive_i)
        self.eval_collector.add_ranks(interaction, positive_i, ranks)
        return interaction, None, positive_u, positive_i
