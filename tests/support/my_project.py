"""What a user adds in a project of his own: one of each kind, in one file that nothing of the package knows."""

from dataclasses import dataclass
from pathlib import Path

import torch
from recbole.evaluator.base_metric import TopkMetric
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn
from torch.nn import functional

from recbole_perpeft.convert.events import batched_events
from recbole_perpeft.convert.source import Source
from recbole_perpeft.convert.sources import register_source
from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.models import register_model
from recbole_perpeft.models.ways import WAYS
from recbole_perpeft.nn.losses import register_loss
from recbole_perpeft.pretrained.families import Family, register_family
from recbole_perpeft.training.metrics import register_metric

# ResNet of transformers, whose blocks differ in width: its own vector is all there is.
register_family(
    Family(
        "ResNet",
        "image",
        blocks=None,
        norm=None,
        pooling="own",
        model_types=frozenset({"resnet"}),
        width="config.hidden_sizes",
    )
)


def train_norms(encoder):
    """Weights of norms train, all others rest."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("norm" in name)


@WAYS.register("norms")
def norms(builder, options):
    """Encoders of which the norms train."""
    return builder.adapted(train_norms)


@register_loss("hinge")
@dataclass(frozen=True)
class HingeLoss(Settings):
    """The next item is to win against a drawn one by a margin."""

    margin: float = setting(1.0, "By how much the next item is to win.", above=0)
    draws = Draws(negatives=1)

    def __call__(self, batch):
        positive, negative = batch.vectors_of(batch.targets), batch.vectors_of(batch.negatives.squeeze(-1))
        lead = (batch.hidden * (positive - negative)).sum(-1)
        return functional.relu(self.margin - lead)[batch.targets != 0].mean()


@register_metric
class Firsts(TopkMetric):
    """Share of users whose target stands first."""

    def calculate_metric(self, dataobject):
        hits, _ = self.used_info(dataobject)
        return {"firsts": round(float(hits[:, 0].mean()), self.decimal_place)}


@dataclass(frozen=True)
class LatestSettings(Settings):
    """How `Latest` weighs a history."""

    loss_type: str = setting("CE", "Cross-entropy over the catalogue, as RecBole names it.", choices=("CE",))
    half_life: float = setting(2.0, "Items after which an item of the history counts half.", above=0)


@register_model
class Latest(SequentialRecommender):
    """An item is scored by learnt vectors of the history, the latest counting most."""

    settings_classes = (LatestSettings,)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.half_life = settings_from(config, LatestSettings).half_life
        self.items = nn.Embedding(self.n_items, 8, padding_idx=0)

    def users(self, interaction):
        rows, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN].unsqueeze(1)
        age = length - 1 - torch.arange(rows.shape[1], device=rows.device)
        weight = torch.where(rows > 0, 0.5 ** (age.clamp(min=0) / self.half_life), 0.0)
        return (self.items(rows) * weight.unsqueeze(-1)).sum(1)

    def calculate_loss(self, interaction):
        return functional.cross_entropy(self.users(interaction) @ self.items.weight.T, interaction[self.ITEM_ID])

    def full_sort_predict(self, interaction):
        return self.users(interaction) @ self.items.weight.T

    def predict(self, interaction):
        return (self.users(interaction) * self.items(interaction[self.ITEM_ID])).sum(-1)


@register_source
class PairsSource(Source):
    """Lines of a user and an item, in time order."""

    name = "pairs"
    example = "--input=pairs.txt --output=dataset_atomic/pairs"

    def __init__(self, path: Path):
        self.path = path

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("--input", type=Path, required=True, help="the file")

    @classmethod
    def from_arguments(cls, arguments, show_progress):
        return cls(arguments["input"])

    def input_files(self):
        return [self.path]

    def events(self):
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return batched_events(self.path, ((number, *line.split()) for number, line in enumerate(lines, start=1)))
