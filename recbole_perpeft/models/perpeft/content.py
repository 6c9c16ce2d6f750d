"""What items look like to PerPEFT: a dual encoder or single towers, with one module a group."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import same_as, setting
from recbole_perpeft.models.build import ContentBuilder, Surroundings, stored_content
from recbole_perpeft.models.towers import EncoderSettings, Tower
from recbole_perpeft.models.ways import adapt
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.frozen_prefix import FrozenPrefix, frozen_depths
from recbole_perpeft.nn.adapt.tuning import LastBlocks, Method
from recbole_perpeft.nn.content import AdaptedContent, ContentEncoder, FrozenContent
from recbole_perpeft.nn.item_encoder import ItemEncoder, NoProjector, Projector
from recbole_perpeft.nn.joined_content import JoinedContent, UnitVectors
from recbole_perpeft.nn.side_network import PRESETS
from recbole_perpeft.nn.users.sasrec import TransformerSettings
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import PooledTower
from recbole_perpeft.store.inputs import ContentCache

# PerPEFT's settings of a way of adapting, where they are not the way's own.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"iisan": vars(PRESETS["perpeft"])})
_WITHOUT_BLOCKS = ("none", "frozen", "iisan", "ids")  # ways that adapt nothing in an encoder


@dataclass(frozen=True)
class ItemEncoderSettings(EncoderSettings):
    """How items become vectors; the defaults are those of PerPEFT's authors."""

    foundation_model: str | None = setting(
        "openai/clip-vit-base-patch32", "Dual encoder: a hub id, a folder, or the bundled aspects-clip."
    )
    peft_type: str = setting(
        "lora",
        "A method of the peft library, adapter, bitfit, full; iisan: a side network; none: frozen; ids: no content.",
    )
    peft_config: dict | None = setting({}, "Settings of the method, over the paper's for lora and ia3.")
    adapt_last: int | None = setting(
        None, "Blocks of each tower that are adapted, counted from its end; ~ for what the method reaches.", least=1
    )
    max_text_length: int | None = setting(None, "Title tokens; by default what the model can read.", least=1)
    hidden_size: int = same_as(TransformerSettings, "hidden_size")
    content_weight: float = setting(0.5, "Weight of the projected content beside the id embedding.", above=0)
    cache_frozen_blocks: bool = setting(
        True, "Whether blocks below the first adapted one are computed once and stored."
    )
    gradient_checkpointing: bool = setting(False, "Keep one chunk's activations at a time and compute them again.")

    def check(self) -> None:
        """A dual encoder or towers, not both."""
        named = [key for key in ("text_encoder", "image_encoder", "towers") if getattr(self, key)]
        if self.foundation_model and named:
            raise PerPEFTError(
                f"foundation_model, {', '.join(named)}: a model has one dual encoder or towers; leave out "
                f"foundation_model or {' and '.join(named)}"
            )
        if self.adapt_last and self.peft_type.lower() in _WITHOUT_BLOCKS:
            raise PerPEFTError(
                f"adapt_last is {self.adapt_last}, but peft_type {self.peft_type} adapts no block: leave it out, "
                "or choose another peft_type"
            )
        super().check()

    def as_towers(self, **changes: Any) -> EncoderSettings:
        """As in `EncoderSettings`; the towers of a dual encoder are its own."""
        own = {"text_encoder": self.foundation_model, "image_encoder": self.foundation_model}
        return super().as_towers(**((own if self.foundation_model else {}) | changes))

    @property
    def reads_ids_alone(self) -> bool:
        """Whether items are what their ids have learnt, and nothing is read of them."""
        return self.peft_type.lower() == "ids"

    @property
    def fields(self) -> tuple[str, ...]:
        """As in `EncoderSettings`."""
        return () if self.reads_ids_alone else super().fields

    @property
    def chosen(self) -> tuple[Tower, ...]:
        """As in `EncoderSettings`."""
        return self.as_towers().chosen if self.foundation_model else super().chosen


class PersonalContent(ContentBuilder):
    """Encoders with one module a group."""

    settings: ItemEncoderSettings

    def bank_of(self, encoder: FoundationModel | PooledTower, method: Method) -> AdapterBank:
        """The modules of all groups on an encoder, in its last blocks if so many are named."""
        last = self.settings.adapt_last
        return AdapterBank(encoder, method if last is None else LastBlocks(method, last))

    def with_modules(self, bank: AdapterBank, cache: ContentCache, processor: Processor) -> AdaptedContent:
        """A bank with its inputs; frozen blocks below the first adapted one leave the model if asked for."""
        settings, around = self.settings, self.around
        depths = frozen_depths(bank)
        prefix = None
        if depths and settings.cache_frozen_blocks:
            inputs = fingerprint(cache, processor)
            if any(tower.pooling == "mean_all" for tower in settings.chosen):
                inputs += "-mean_all"  # the encoder then takes padding for text
            size = settings.encoder_chunk_size
            prefix = FrozenPrefix(bank, depths, cache, around.cache_folder, inputs, size, around.show_progress)
        rows = cache.rows_of(around.item_tokens)
        return AdaptedContent(bank, cache, rows, settings.encoder_chunk_size, settings.gradient_checkpointing, prefix)


class DualContent(PersonalContent):
    """Of a dual encoder, as in the paper."""

    def adapted(self, method: Method) -> ContentEncoder:
        """As in `ContentBuilder`."""
        # What is wrong with the settings shows before the images are read.
        bank = self.bank_of(FoundationModel.from_pretrained(str(self.settings.foundation_model)), method)
        return self.with_modules(bank, *self._inputs())

    def frozen(self) -> ContentEncoder:
        """As in `ContentBuilder`."""
        cache, processor = self._inputs()
        return FrozenContent(
            partial(FoundationModel.from_pretrained, str(self.settings.foundation_model)),
            cache,
            cache.rows_of(self.around.item_tokens),
            self.around.cache_folder,
            fingerprint(cache, processor),
            self.settings.encoder_chunk_size,
            self.around.show_progress,
        )

    def _inputs(self) -> tuple[ContentCache, Processor]:
        processor = Processor.from_pretrained(str(self.settings.foundation_model), self.settings.max_text_length)
        return self.around.cached(processor), processor


class TowersContent(PersonalContent):
    """Of one or two towers, each with a module a group; their vectors are joined as a dual encoder joins its own."""

    def adapted(self, method: Method) -> ContentEncoder:
        """As in `ContentBuilder`."""
        towers = self.settings.by_role
        banks = {role: self.bank_of(self._load(tower), method) for role, tower in towers.items()}
        length = self.settings.max_text_length
        contents = {
            role: self.with_modules(banks[role], *self.around.inputs({tower.kind: tower}, length))
            for role, tower in towers.items()
        }
        return JoinedContent(contents, UnitVectors({role: bank.content_size for role, bank in banks.items()}))

    def _load(self, tower: Tower) -> PooledTower:
        return PooledTower.load(tower.encoder, tower.kind, tower.pooling, self.around.cache_folder)

    def frozen(self) -> ContentEncoder:
        """As in `ContentBuilder`."""
        return stored_content(self.settings, self.around, UnitVectors)


def fingerprint(cache: ContentCache, processor: Processor) -> str:
    """Identifies content and processor."""
    return value_hash([cache.fingerprint, processor.description])


def build_item_encoder(settings: ItemEncoderSettings, around: Surroundings) -> ItemEncoder:
    """Loads the encoders, fills the caches where needed, and puts the item encoder together.

    Raises:
        PerPEFTError: Settings, encoders or content cannot be used.
    """
    builder = (DualContent if settings.foundation_model else TowersContent)(settings, around)
    options = dict(_DEFAULTS.get(settings.peft_type.lower(), {})) | (settings.peft_config or {})
    content = adapt(builder, settings.peft_type, options)
    return ItemEncoder(
        content,
        len(around.item_tokens),
        settings.hidden_size,
        settings.content_weight,
        settings.encoder_chunk_size,
        Projector if content.content_size else NoProjector,
    )
