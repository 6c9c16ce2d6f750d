"""Items like those of a user's history, by content alone and without training."""

from dataclasses import dataclass

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.models.build import ContentControl, Surroundings, stored_content
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.nn.joined_content import UnitVectors


@dataclass(frozen=True)
class HistorySettings(Settings):
    """How a history becomes one vector."""

    history_decay: float = setting(
        0.9, "Weight of an item of the history beside that of the item after it; 1 weighs all alike.", above=0, most=1
    )


class ContentKNN(SequentialRecommender):
    r"""What frozen encoders know without any training: the baseline that every trained content model must beat.

    .. math:: s(u, i) = \sum_{j=1}^{L} \gamma^{L-j} \, v(i_j)^\top v(i)

    over the newest L items of the history, with content vectors v of length 1 for each tower (so a sum of cosines).

    Args:
        config: RecBole configuration with the keys of `settings_classes`; `epochs` should be 1.
        dataset: The train part of the data set.
    """

    input_type = InputType.PAIRWISE
    dataset_class = SequenceDataset
    settings_classes: tuple[type[Settings], ...] = (EncoderSettings, HistorySettings, ContentControl)

    @staticmethod
    def train_draws(config) -> Draws:
        """Nothing is drawn."""
        return Draws()

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.decay = settings_from(config, HistorySettings).history_decay
        encoders = settings_from(config, EncoderSettings)
        tokens = dataset.field2id_token[self.ITEM_ID]
        missing, folder = config["missing_content"], config.dataset_folder
        limits = settings_from(config, PhotoLimits)
        content = ItemContent.load(folder, config["dataset"], tokens[1:], missing, encoders.fields, limits)
        encoder = stored_content(encoders, Surroundings.of(config, content, tokens), UnitVectors)
        vectors = [encoder(items, None) for items in torch.arange(len(tokens)).split(encoders.encoder_chunk_size)]
        self.register_buffer("content", torch.cat(vectors), persistent=False)  # [n_items, width]; the pad is zero
        self.nothing = nn.Parameter(torch.zeros(1))  # RecBole's trainer wants something to train

    def calculate_loss(self, interaction) -> Tensor:
        """0: nothing is learnt."""
        return self.nothing.sum() * 0.0

    def catalogue(self, group: int | None, kept: bool = True) -> Tensor:
        """Content of all items, [n_items, width]; there is one group, `None`, and it is always kept."""
        return self.content

    def user_vectors(self, item_seq: Tensor, length: Tensor, catalogue: Tensor) -> Tensor:
        """Weighted sums of the content of histories.

        Args:
            item_seq: [B, L], padded with 0 on the right.
            length: [B].
            catalogue: As from `catalogue`.

        Returns:
            [B, width]
        """
        age = length.unsqueeze(1) - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
        weight = self.decay ** age.clamp(min=0)
        return (catalogue[item_seq] * weight.unsqueeze(-1)).sum(1)

    def full_sort_predict(self, interaction) -> Tensor:
        """Scores of all items, [B, n_items]; fields as in RecBole."""
        users = self.user_vectors(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], self.content)
        return users @ self.content.T

    def predict(self, interaction) -> Tensor:
        """Score of one item a row (field `item_id`), [B]."""
        users = self.user_vectors(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], self.content)
        return (users * self.content[interaction[self.ITEM_ID]]).sum(-1)
