"""Towers: which encoders read which fields of an item, and the caches of what they make of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.content import IMAGE, TITLE, ItemContent
from recbole_perpeft.nn.layer_drop import LayerDropSettings
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import describe_backbone
from recbole_perpeft.store.states import HiddenStateCache, HiddenStateSettings

ROLES = ("text", "image")
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
class EncoderSettings(Settings):
    """The encoders of a model. What is read of an item and what reads it follow from the same towers."""

    text_encoder: str | None = setting(None, "Encoder of titles: a hub id, a folder, aspects-clip, minilm, or ~.")
    image_encoder: str | None = setting(None, "Encoder of images: the same.")
    text_pooling: str | None = setting(None, "cls | mean | mean_all | eos; ~ for the usual way of the encoder.")
    image_pooling: str | None = setting(None, "The same for images.")
    towers: list[dict] | None = setting(
        None, "Instead of both: [{field: title, encoder: ...}, {field: caption, encoder: ...}]."
    )
    max_text_length: int | None = setting(30, "Title tokens; ~ for the most that the encoder reads.", least=1)
    cache_dtype: Literal["float16", "float32"] = setting("float16", "How stored states and vectors are kept.")
    quantization: str | None = setting(None, "8bit or 4bit loads a large text encoder so, where it is frozen.")
    encoder_chunk_size: int = setting(64, "Items that go through an encoder at once.", least=1)

    def check(self) -> None:
        """A model has one or two towers."""
        if not 1 <= len(self.chosen) <= 2:
            raise PerPEFTError(
                f"{len(self.chosen)} towers: a model has one or two; name text_encoder, image_encoder, or towers"
            )

    @property
    def chosen(self) -> tuple[Tower, ...]:
        """One or two towers, that of titles first; of `towers`, the first stands in the place of titles."""
        if self.towers:
            return tuple(_tower(entry) for entry in self.towers)
        named = ((TITLE, self.text_encoder, self.text_pooling), (IMAGE, self.image_encoder, self.image_pooling))
        return tuple(Tower(field, encoder, pooling) for field, encoder, pooling in named if encoder)

    def as_towers(self, **changes: Any) -> "EncoderSettings":
        """These encoders alone, with other values for some keys."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(EncoderSettings)}
        return EncoderSettings(**(values | changes))

    @property
    def by_role(self) -> dict[str, Tower]:
        """Towers by the place they take, `text` or `image`: one alone takes that of its kind."""
        towers = self.chosen
        return dict(zip(ROLES if len(towers) > 1 else (towers[0].kind,), towers, strict=True))

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
        layers: Sequence[Sequence[int]] = ((),) * len(self.chosen)
        if layer_drop is not None:
            shapes = [describe_backbone(tower.encoder, tower.kind, folder) for tower in self.chosen]
            layers = layer_drop.states([shape.n_layers for shape in shapes], tuple(self.by_role))
        return tuple(
            HiddenStateCache.open_or_build(content, tower.field, self._states(tower, kept), folder, show_progress)
            for tower, kept in zip(self.chosen, layers, strict=True)
        )

    def _states(self, tower: Tower, layers: Sequence[int]) -> HiddenStateSettings:
        is_text = tower.kind == "text"
        return HiddenStateSettings(
            encoder=tower.encoder,
            layers=tuple(layers),
            pooling=tower.pooling,
            max_length=self._text_length(tower) if is_text else HiddenStateSettings.max_length,
            dtype=self.cache_dtype,
            batch_size=self.encoder_chunk_size,
            quantization=self.quantization if is_text else None,
        )

    def _text_length(self, tower: Tower) -> int:
        if self.max_text_length is not None:
            return self.max_text_length
        return Processor.from_encoders(tower.encoder, max_text_length=None).text_length or 0


def _tower(entry: Any) -> Tower:
    if not {"field", "encoder"} <= entry.keys() <= _TOWER_KEYS:
        raise PerPEFTError(
            f"towers: {entry!r} does not describe a tower; write {{field: title, encoder: <encoder>}}, and if need be "
            "pooling: <pooling>"
        )
    return Tower(**entry)
