"""MoRec: item vectors from encoders that are trained with the recommender, the baselines of the IISAN papers."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.base import ContentRecommender
from recbole_perpeft.models.build import Surroundings, build_tuned_content
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.nn.adapt.tuning import TuningSettings
from recbole_perpeft.nn.content import ContentEncoder
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.tuned_content import FrozenStatesContent


class MoRec(ContentRecommender):
    """A recommender of items by content alone, trained end to end (Fu et al., arXiv 2411.02992, baselines).

    `adaptation` says what is trained of the encoders: `full`, `adapter` (Houlsby), `lora`, `bitfit`, or with `frozen`
    nothing: then their final vectors are computed once and stored.

    Args:
        config: RecBole configuration.
        dataset: The train part of the data set.
    """

    settings_classes = (EncoderSettings, TuningSettings)

    def content_fields(self, config) -> tuple[str, ...]:
        """The fields of the encoders."""
        return settings_from(config, EncoderSettings).fields

    def build_item_encoder(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ItemEncoder:
        """Encoders with heads, and linear fusion."""
        settings = settings_from(config, TuningSettings)
        if settings.adaptation == "frozen":
            encoder = self._frozen_content(config, content, item_tokens)
        else:
            encoder = self._tuned_content(config, settings, content, item_tokens)
        return ItemEncoder(
            encoder,
            n_items=len(item_tokens),
            hidden_size=config["hidden_size"],
            content_weight=1.0,
            chunk_size=config["encoder_chunk_size"],
            projector=nn.Linear,
            has_ids=False,
        )

    def _frozen_content(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ContentEncoder:
        towers = settings_from(config, EncoderSettings)
        caches = towers.open_caches(None, content, config["cache_folder"], bool(config["show_progress"]))
        return FrozenStatesContent(dict(zip(towers.by_role, caches, strict=True)), item_tokens)

    def _tuned_content(
        self, config, settings: TuningSettings, content: ItemContent, item_tokens: Sequence[str]
    ) -> ContentEncoder:
        around = Surroundings(content, item_tokens, Path(config["cache_folder"]), bool(config["show_progress"]))
        return build_tuned_content(settings_from(config, EncoderSettings), settings, around)
