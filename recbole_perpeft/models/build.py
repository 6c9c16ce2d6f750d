"""What content encoders of a model are built from, and the parts that all of them have."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Settings, same_as, setting, settings_from
from recbole_perpeft.data.content import TITLE, ItemContent
from recbole_perpeft.models.towers import EncoderSettings, Tower
from recbole_perpeft.nn.adapt.tuning import Method
from recbole_perpeft.nn.content import ContentEncoder
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.joined_content import ContentHeads, JoinedContent, StoredVectors, UnitVectors
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.nn.side_content import SideContent
from recbole_perpeft.nn.side_network import SideNetworkSettings
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.store.inputs import ContentCache
from recbole_perpeft.store.noise import noise_of
from recbole_perpeft.store.states import HiddenStateCache


@dataclass(frozen=True)
class ContentControl(Settings):
    """Content that says nothing of its item, to tell what content adds from what more parameters add."""

    shuffle_content: bool = setting(False, "A control: each item has the content of another, drawn by the seed.")
    noise_content: bool = setting(False, "A control: photos of noise, and words drawn from all titles.")
    seed: int = same_as(RunSettings, "seed")

    @classmethod
    def of(cls, config: Any) -> "ContentControl":
        """That of a run with a configuration."""
        return settings_from(config, cls)

    def content_of(self, item_tokens: Sequence[str]) -> Sequence[str]:
        """Items whose content stands in the place of each item's, the pad first."""
        if not self.shuffle_content:
            return item_tokens
        order = np.random.default_rng(self.seed).permutation(np.arange(1, len(item_tokens)))
        return [item_tokens[0], *(item_tokens[place] for place in order)]


@dataclass(frozen=True)
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

    @classmethod
    def of(cls, config: Any, content: ItemContent, item_tokens: Sequence[str]) -> "Surroundings":
        """Those of a run with a configuration."""
        control, folder = ContentControl.of(config), Path(config["cache_folder"])
        if control.noise_content:
            content = noise_of(content, folder, control.seed)
        return cls(content, control.content_of(item_tokens), folder, bool(config["show_progress"]))

    def inputs(self, by_kind: Mapping[str, Tower], max_text_length: int | None) -> tuple[ContentCache, Processor]:
        """The cache of what encoders read, at most one of texts and one of images, and what made it."""
        encoders = {f"{kind}_encoder": tower.encoder for kind, tower in by_kind.items()}
        # With `mean_all`, the vector of a text must not depend on the longest one beside it.
        trims = all(tower.pooling != "mean_all" for tower in by_kind.values())
        processor = Processor.from_encoders(**encoders, max_text_length=max_text_length, trim_text=trims)
        return self.cached(processor, by_kind["text"].field if "text" in by_kind else TITLE), processor

    def cached(self, processor: Processor, field: str = TITLE) -> ContentCache:
        """The cache of what a processor makes of images and of the texts of a field."""
        content = self.content.read_as_titles(field)
        return ContentCache.open_or_build(content, processor, self.cache_folder, show_progress=self.show_progress)

    def states(self, encoders: EncoderSettings, layer_drop: LayerDropSettings | None) -> tuple[HiddenStateCache, ...]:
        """The cache of each tower's hidden states, or with None of its final vectors alone."""
        return encoders.open_caches(layer_drop, self.content, self.cache_folder, self.show_progress)


class ContentBuilder(ABC):
    """Builds content encoders for one kind of model; ways of adapting (`recbole_perpeft.models.ways`) call it.

    Args:
        settings: The encoders.
        around: Items and places.
    """

    settings: EncoderSettings

    def __init__(self, settings: EncoderSettings, around: Surroundings) -> None:
        self.settings = settings
        self.around = around

    @abstractmethod
    def adapted(self, method: Method) -> ContentEncoder:
        """Encoders that a method changes and that train with the recommender.

        Raises:
            PerPEFTError: Method, encoders or content cannot be used.
        """

    @abstractmethod
    def frozen(self) -> ContentEncoder:
        """Stored vectors of encoders that stay as they are; the encoders are not kept in memory.

        Raises:
            PerPEFTError: Encoders or content cannot be used.
        """


def stored_content(
    encoders: EncoderSettings, around: Surroundings, heads: type[ContentHeads] | type[UnitVectors]
) -> JoinedContent:
    """Stored vectors of all towers, and what joins them; the encoders are not kept in memory."""
    caches = dict(zip(encoders.by_role, around.states(encoders, None), strict=True))
    towers = {role: StoredVectors(cache, around.item_tokens) for role, cache in caches.items()}
    return JoinedContent(towers, heads({role: cache.width for role, cache in caches.items()}))


def side_content(
    encoders: EncoderSettings, side: SideNetworkSettings, layer_drop: LayerDropSettings, around: Surroundings
) -> SideContent:
    """Side networks on stored hidden states; the encoders are not kept in memory.

    Raises:
        PerPEFTError: Settings, encoders or content cannot be used.
    """
    caches = around.states(encoders, layer_drop)
    return SideContent(caches, [cache.rows_of(around.item_tokens) for cache in caches], side)


def by_content_alone(content_encoder: ContentEncoder, n_items: int, hidden_size: int, chunk_size: int) -> ItemEncoder:
    """Item vectors without ids: linear fusion of content (IISAN-Versa, arXiv 2411.02992, equation 1).

    Raises:
        PerPEFTError: There is no content.
    """
    if not content_encoder.content_size:
        raise PerPEFTError("adaptation: ids leaves nothing to learn from here; choose GlobalPEFT with peft_type: ids")
    return ItemEncoder(
        content_encoder,
        n_items=n_items,
        hidden_size=hidden_size,
        content_weight=1.0,
        chunk_size=chunk_size,
        projector=nn.Linear,
        has_ids=False,
    )
