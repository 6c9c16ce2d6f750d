"""Putting an item encoder of PerPEFT together, by its way of adapting the foundation model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.content import TITLE, ItemContent
from recbole_perpeft.models.towers import EncoderSettings, Tower
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.frozen_prefix import FrozenPrefix, frozen_depths
from recbole_perpeft.nn.adapt.tuning import TuningSettings
from recbole_perpeft.nn.content import AdaptedContent, ContentEncoder, FrozenContent
from recbole_perpeft.nn.item_encoder import FROZEN, ItemEncoder, ItemEncoderSettings
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.nn.side_content import SideContent
from recbole_perpeft.nn.side_network import PRESETS
from recbole_perpeft.nn.tuned_content import InputsOfRoles, TunedEncoders, joint_fingerprint
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone
from recbole_perpeft.store.inputs import ContentCache


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What content encoders are built from besides settings.

    Args:
        content: Titles and images.
        item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.
        cache_folder: Where processor outputs, content vectors and hidden states are kept.
        show_progress: Whether to show progress bars while these are made.
    """

    content: ItemContent
    item_tokens: Sequence[str]
    cache_folder: Path
    show_progress: bool


def build_item_encoder(
    settings: ItemEncoderSettings,
    content: ItemContent,
    item_tokens: Sequence[str],
    cache_folder: str | Path,
    show_progress: bool = True,
) -> ItemEncoder:
    """Loads the foundation model, fills the caches where needed, and puts the item encoder together.

    Args:
        settings: How items become vectors.
        content, item_tokens, cache_folder, show_progress: As in `Surroundings`.

    Raises:
        PerPEFTError: Settings, foundation model or content cannot be used.
    """
    build = _BUILDERS.get(settings.peft_type.lower(), _adapted)
    encoder = build(settings, Surroundings(content, item_tokens, Path(cache_folder), show_progress))
    return ItemEncoder(
        encoder, len(item_tokens), settings.hidden_size, settings.content_weight, settings.encoder_chunk_size
    )


def _inputs(settings: ItemEncoderSettings, around: Surroundings) -> tuple[Processor, ContentCache, Tensor]:
    processor = Processor.from_pretrained(settings.foundation_model, settings.max_text_length)
    cache = ContentCache.open_or_build(
        around.content, processor, around.cache_folder, show_progress=around.show_progress
    )
    return processor, cache, cache.rows_of(around.item_tokens)


def _adapted(settings: ItemEncoderSettings, around: Surroundings) -> ContentEncoder:
    # What is wrong with the settings shows before the images are read.
    foundation = FoundationModel.from_pretrained(settings.foundation_model)
    bank = AdapterBank(foundation, settings.peft_type, settings.peft_config)
    processor, cache, rows = _inputs(settings, around)
    size, depths = settings.encoder_chunk_size, frozen_depths(bank)
    prefix = None
    if depths and settings.cache_frozen_blocks:
        fingerprint = _fingerprint(cache, processor)
        prefix = FrozenPrefix(bank, depths, cache, around.cache_folder, fingerprint, size, around.show_progress)
    return AdaptedContent(bank, cache, rows, size, settings.gradient_checkpointing, prefix)


def _fingerprint(cache: ContentCache, processor: Processor) -> str:
    """Identifies content and processor."""
    return value_hash([cache.fingerprint, processor.description])


def _frozen(settings: ItemEncoderSettings, around: Surroundings) -> ContentEncoder:
    processor, cache, rows = _inputs(settings, around)
    load_foundation = functools.partial(FoundationModel.from_pretrained, settings.foundation_model)
    return FrozenContent(
        load_foundation,
        cache,
        rows,
        around.cache_folder,
        _fingerprint(cache, processor),
        settings.encoder_chunk_size,
        around.show_progress,
    )


def _side(settings: ItemEncoderSettings, around: Surroundings) -> ContentEncoder:
    """A side network a group on the hidden states of both towers of the foundation model."""
    towers = EncoderSettings(
        text_encoder=settings.foundation_model,
        image_encoder=settings.foundation_model,
        max_text_length=settings.max_text_length,
        encoder_chunk_size=settings.encoder_chunk_size,
    )
    side, layer_drop, towers = _overridden((PRESETS["perpeft"], LayerDropSettings(), towers), settings.peft_config)
    caches = towers.open_caches(layer_drop, around.content, around.cache_folder, around.show_progress)
    return SideContent(caches, [cache.rows_of(around.item_tokens) for cache in caches], side)


def build_tuned_content(settings: EncoderSettings, tuning: TuningSettings, around: Surroundings) -> AdaptedContent:
    """Loads encoders that train with the recommender, and fills the cache of their inputs where needed.

    Raises:
        PerPEFTError: Settings, encoders or content cannot be used.
    """
    towers = dict(sorted(settings.by_role.items()))  # images first, as in a content vector
    # What is wrong with the settings shows before the images are read.
    backbones = {role: Backbone.from_pretrained(tower.encoder, tower.kind) for role, tower in towers.items()}
    prints = {
        role: describe_backbone(tower.encoder, tower.kind, around.cache_folder).fingerprint
        for role, tower in towers.items()
    }
    poolings = {role: tower.pooling for role, tower in towers.items()}
    encoders = TunedEncoders(backbones, tuning, joint_fingerprint(prints), poolings)
    source = _tower_inputs(towers, settings.max_text_length, around)
    rows = source.rows_of(around.item_tokens)
    return AdaptedContent(encoders, source, rows, settings.encoder_chunk_size, tuning.gradient_checkpointing)


def _tower_inputs(
    towers: Mapping[str, Tower], max_text_length: int | None, around: Surroundings
) -> ContentCache | InputsOfRoles:
    """Inputs of towers, from one cache where one reads texts and the other images."""
    by_kind = {tower.kind: tower for tower in towers.values()}
    if by_kind != towers:
        return InputsOfRoles({role: _cache({t.kind: t}, max_text_length, around) for role, t in towers.items()})
    return _cache(by_kind, max_text_length, around)


def _cache(by_kind: Mapping[str, Tower], max_text_length: int | None, around: Surroundings) -> ContentCache:
    encoders = {f"{kind}_encoder": tower.encoder for kind, tower in by_kind.items()}
    # With `mean_all`, the vector of a text must not depend on the longest one beside it.
    trims = all(tower.pooling != "mean_all" for tower in by_kind.values())
    processor = Processor.from_encoders(**encoders, max_text_length=max_text_length, trim_text=trims)
    field = by_kind["text"].field if "text" in by_kind else TITLE
    content = around.content.read_as_titles(field)
    return ContentCache.open_or_build(content, processor, around.cache_folder, show_progress=around.show_progress)


def _overridden(defaults: Sequence[Any], changes: Mapping[str, Any] | None) -> list[Any]:
    """Settings with the keys of `peft_config` in place of their own values."""
    known = [{field.name for field in dataclasses.fields(each)} for each in defaults]
    unknown = set(changes or {}).difference(*known)
    if unknown:
        raise PerPEFTError(
            f"peft_config: {', '.join(sorted(unknown))} means nothing with peft_type iisan; choose among "
            f"{', '.join(sorted(set().union(*known)))}"
        )
    return [
        settings_from(vars(each) | {key: value for key, value in (changes or {}).items() if key in names}, type(each))
        for each, names in zip(defaults, known, strict=True)
    ]


_BUILDERS: Mapping[str, Callable[[ItemEncoderSettings, Surroundings], ContentEncoder]] = MappingProxyType(
    {FROZEN: _frozen, "iisan": _side}
)
