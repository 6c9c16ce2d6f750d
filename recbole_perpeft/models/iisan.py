"""IISAN: a side network on the stored hidden states of frozen encoders."""

from collections.abc import Sequence

from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.base import ContentRecommender
from recbole_perpeft.models.build import Surroundings, by_content_alone, side_content
from recbole_perpeft.models.towers import EncoderSettings
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.nn.side_network import SideNetworkSettings


class IISAN(ContentRecommender):
    """IISAN (Fu et al., SIGIR 2024, arXiv 2404.02059) and IISAN-Versa (TKDE, arXiv 2411.02992).

    Intra-modal and inter-modal towers of small blocks read the hidden states of encoders, which are computed once and
    stored, so that no encoder is in memory while the model trains. An item has no id vector. Encoders of equal
    width make the symmetric model (VS), others the asymmetric one (VA).

    Args:
        config: RecBole configuration.
        dataset: The train part of the data set.
    """

    settings_classes = (EncoderSettings, LayerDropSettings, SideNetworkSettings)

    def content_fields(self, config) -> tuple[str, ...]:
        """The fields of the towers."""
        return settings_from(config, EncoderSettings).fields

    def build_item_encoder(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ItemEncoder:
        """Side network and linear fusion (arXiv 2411.02992, equation 1)."""
        encoders, side = settings_from(config, EncoderSettings), settings_from(config, SideNetworkSettings)
        around = Surroundings.of(config, content, item_tokens)
        encoder = side_content(encoders, side, settings_from(config, LayerDropSettings), around)
        return by_content_alone(encoder, len(item_tokens), config["hidden_size"], encoders.encoder_chunk_size)
