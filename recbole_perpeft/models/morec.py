"""MoRec: item vectors from encoders that are trained with the recommender, the baselines of the IISAN papers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_perpeft.core.settings import same_as, setting, settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.base import ContentRecommender
from recbole_perpeft.models.build import ContentBuilder, Surroundings, by_content_alone, stored_content
from recbole_perpeft.models.towers import EncoderSettings, Tower
from recbole_perpeft.models.ways import adapt
from recbole_perpeft.nn.adapt.tuning import Method
from recbole_perpeft.nn.content import AdaptedContent, ContentEncoder, ContentSource
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.joined_content import ContentHeads, joint_fingerprint
from recbole_perpeft.nn.tuned_content import InputsOfRoles, TunedEncoders
from recbole_perpeft.nn.users.sasrec import TransformerSettings
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone


@dataclass(frozen=True)
class MoRecSettings(EncoderSettings):
    """How items become vectors; the defaults are those of IISAN's baselines (arXiv 2411.02992)."""

    adaptation: str = setting("full", "full | adapter | lora | bitfit | frozen | iisan, or a method of peft.")
    peft_config: dict | None = setting({}, "Settings of the method, over those below.")
    adapter_rank: int = setting(64, "Inner width of a Houlsby adapter.", least=1)
    lora_rank: int = setting(8, "Rank of LoRA.", least=1)
    lora_alpha: float = setting(1, "Scale of LoRA times the rank.", above=0)
    backbone_train_mode: bool = setting(False, "Whether the encoders' own dropout is on in training.")
    gradient_checkpointing: bool = setting(False, "Keep one chunk's activations at a time and compute them again.")
    hidden_size: int = same_as(TransformerSettings, "hidden_size")

    @property
    def options(self) -> dict[str, Any]:
        """What the way of adapting is told: the authors' settings, and those of the user."""
        lora = {"r": self.lora_rank, "lora_alpha": self.lora_alpha, "lora_dropout": 0.0, "bias": "lora_only"}
        defaults: Mapping[str, dict] = {
            "lora": lora,
            "adapter": {"adapter_rank": self.adapter_rank},
            "iisan": {"hidden_size": self.hidden_size},
        }
        return defaults.get(self.adaptation.lower(), {}) | (self.peft_config or {})


class MoRecContent(ContentBuilder):
    """Encoders that train for all users alike, or their stored vectors, with a head on each."""

    settings: MoRecSettings

    def adapted(self, method: Method) -> ContentEncoder:
        """As in `ContentBuilder`."""
        settings, around = self.settings, self.around
        towers = dict(sorted(settings.by_role.items()))  # images first, as in a content vector
        # What is wrong with the settings shows before the images are read.
        backbones = {role: Backbone.from_pretrained(tower.encoder, tower.kind) for role, tower in towers.items()}
        prints = {
            role: describe_backbone(tower.encoder, tower.kind, around.cache_folder).fingerprint
            for role, tower in towers.items()
        }
        poolings = {role: tower.pooling for role, tower in towers.items()}
        encoders = TunedEncoders(backbones, method, joint_fingerprint(prints), poolings, settings.backbone_train_mode)
        source = self._inputs(towers)
        rows = source.rows_of(around.item_tokens)
        return AdaptedContent(encoders, source, rows, settings.encoder_chunk_size, settings.gradient_checkpointing)

    def _inputs(self, towers: Mapping[str, Tower]) -> ContentSource:
        """What the towers read, from one cache where one reads texts and the other images."""
        length = self.settings.max_text_length
        by_kind = {tower.kind: tower for tower in towers.values()}
        if by_kind == towers:
            return self.around.inputs(by_kind, length)[0]
        return InputsOfRoles(
            {role: self.around.inputs({tower.kind: tower}, length)[0] for role, tower in towers.items()}
        )

    def frozen(self) -> ContentEncoder:
        """As in `ContentBuilder`."""
        return stored_content(self.settings, self.around, ContentHeads)


class MoRec(ContentRecommender):
    """A recommender of items by content alone, trained end to end (Fu et al., arXiv 2411.02992, baselines).

    `adaptation` says what is trained of the encoders, a way of `recbole_perpeft.models.ways`: `full`, `adapter`
    (Houlsby), `lora`, `bitfit`, or with `frozen` nothing: then their final vectors are computed once and stored.

    Args:
        config: RecBole configuration.
        dataset: The train part of the data set.
    """

    settings_classes = (MoRecSettings,)

    def content_fields(self, config) -> tuple[str, ...]:
        """The fields of the encoders."""
        return settings_from(config, MoRecSettings).fields

    def build_item_encoder(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ItemEncoder:
        """Encoders with heads, and linear fusion."""
        settings = settings_from(config, MoRecSettings)
        builder = MoRecContent(settings, Surroundings.of(config, content, item_tokens))
        encoder = adapt(builder, settings.adaptation, settings.options, "adaptation")
        return by_content_alone(encoder, len(item_tokens), settings.hidden_size, settings.encoder_chunk_size)
