"""Towers: which encoders read which fields of an item, and the caches of what they make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.pretrained.tower import describe_backbone
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings

_TOWER_KEYS = {"field", "encoder", "pooling"}


@dataclass(frozen=True)
class Tower:
    """An encoder of one field of an item.

    Args:
        field: `title`, `image`, or another text column of the item file.
        encoder: A bundled model, `minilm`, a folder or a hub id.
        pooling: How tokens become one vector; None for the encoder's usual way.
    """

    field: str
    encoder: str
    pooling: str | None = None

    @property
    def kind(self) -> str:
        """`image` or `text`."""
        return "image" if self.field == IMAGE else "text"


@dataclass(frozen=True)
class TowerSettings:
    """The towers of a model, by RecBole keys.

    Args:
        text_encoder: Encoder of titles; empty for a model without titles.
        image_encoder: Encoder of images; empty for a model without images.
        text_pooling: `cls`, `mean`, `mean_all` or `eos`; empty for the encoder's usual way.
        image_pooling: The same for images.
        towers: Instead of the two encoders, one or two of `{field: ..., encoder: ..., pooling: ...}`, the first in
            the place of the titles, the second in that of the images: two texts, for instance.
        max_text_length: Tokens of a text, special tokens included.
        cache_dtype: How hidden states are stored.
        quantization: `8bit` or `4bit` loads text encoders so.
        encoder_chunk_size: Items that pass through an encoder at once.

    Raises:
        PerPEFTError: There is no tower, more than two, or one that is not described as above.
    """

    text_encoder: str | None = None
    image_encoder: str | None = None
    text_pooling: str | None = None
    image_pooling: str | None = None
    towers: list | None = None
    max_text_length: int = 30
    cache_dtype: Literal["float16", "float32"] = "float16"
    quantization: str | None = None
    encoder_chunk_size: int = 64

    def __post_init__(self) -> None:
        if not 1 <= len(self.chosen) <= 2:
            raise PerPEFTError(
                f"{len(self.chosen)} towers: a model has one or two; name text_encoder, image_encoder, or towers"
            )

    @property
    def chosen(self) -> tuple[Tower, ...]:
        """One or two towers, that of titles first."""
        if self.towers:
            return tuple(_tower(entry) for entry in self.towers)
        named = ((TITLE, self.text_encoder, self.text_pooling), (IMAGE, self.image_encoder, self.image_pooling))
        return tuple(Tower(field, encoder, pooling) for field, encoder, pooling in named if encoder)

    @property
    def fields(self) -> tuple[str, ...]:
        """What is read of an item."""
        return tuple(dict.fromkeys(tower.field for tower in self.chosen))

    def open_caches(
        self,
        layer_drop: LayerDropSettings | None,
        content: ItemContent,
        cache_folder: str | Path,
        show_progress: bool = True,
    ) -> tuple[HiddenStateCache, ...]:
        """The cache of each tower, built where it is missing.

        Args:
            layer_drop: Which hidden states are kept; None for the final vectors alone.
            content: With the fields of the towers.
            cache_folder: Where caches are.
            show_progress: Whether to show progress bars while caches are built.

        Raises:
            PerPEFTError: An encoder, its layers or the content cannot be used.
        """
        folder = Path(cache_folder)
        depths = [describe_backbone(tower.encoder, tower.kind, folder).n_layers for tower in self.chosen]
        layers = ((),) * len(depths) if layer_drop is None else layer_drop.states(depths)
        return tuple(
            HiddenStateCache.open_or_build(content, tower.field, self._states(tower, kept), folder, show_progress)
            for tower, kept in zip(self.chosen, layers, strict=True)
        )

    def _states(self, tower: Tower, layers: Sequence[int]) -> HiddenStateSettings:
        return HiddenStateSettings(
            encoder=tower.encoder,
            layers=tuple(layers),
            pooling=tower.pooling,
            max_length=self.max_text_length,
            dtype=self.cache_dtype,
            batch_size=self.encoder_chunk_size,
            quantization=self.quantization if tower.kind == "text" else None,
        )


def _tower(entry: Any) -> Tower:
    if not isinstance(entry, dict) or not {"field", "encoder"} <= entry.keys() <= _TOWER_KEYS:
        raise PerPEFTError(
            f"towers: {entry!r} does not describe a tower; write {{field: title, encoder: <encoder>}}, and if need be "
            "pooling: <pooling>"
        )
    return Tower(**entry)
