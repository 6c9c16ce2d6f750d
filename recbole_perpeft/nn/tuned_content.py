"""Content vectors of the MoRec baselines: encoders trained with the recommender, or heads on frozen ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.nn.adapt.tuning import TuningSettings, tune
from recbole_perpeft.nn.content import AdaptedContent
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone
from recbole_perpeft.store.inputs import ContentCache

# Images come first in a content vector.
_INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}
HEAD_SIZE = 64


@dataclass(frozen=True)
class TunedContentSettings:
    """Which encoders are tuned, and how items pass through them.

    Args:
        text_encoder, image_encoder: As in `locate_encoder`; one may be empty.
        text_pooling, image_pooling: How the tokens of an item become one vector, as in `Backbone.pooled`; None for
            the usual way of the encoder.
        max_text_length: Tokens of a title, special tokens included; None for the most that the encoder takes.
        encoder_chunk_size: Items that pass through the encoders at once.
        gradient_checkpointing: Compute the encoders again in the backward pass instead of keeping activations.
    """

    text_encoder: str | None = "bert-base-uncased"
    image_encoder: str | None = "google/vit-base-patch16-224"
    text_pooling: str | None = None
    image_pooling: str | None = None
    max_text_length: int | None = 30
    encoder_chunk_size: int = 64
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not (self.text_encoder or self.image_encoder):
            raise PerPEFTError("text_encoder, image_encoder: both are empty; name at least one")
        if self.encoder_chunk_size < 1:
            raise PerPEFTError(f"encoder_chunk_size: {self.encoder_chunk_size} is too small; choose 1 or more")

    @property
    def encoders(self) -> dict[str, str]:
        """Encoder of each kind of content that is used."""
        named = {"image": self.image_encoder, "text": self.text_encoder}
        return {kind: name for kind, name in named.items() if name}


class FinalStateSource(Protocol):
    """Pooled vectors after an encoder's final norm (`recbole_perpeft.store.states.HiddenStateCache`)."""

    width: int
    fingerprint: str

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad."""
        ...

    def final(self, rows: Tensor) -> Tensor:
        """Vectors of rows, [n, width]."""
        ...


class ContentHeads(nn.ModuleDict):
    r"""Content vectors from pooled vectors: :math:`[\mathrm{GELU}(W_v v + b_v) ; \mathrm{GELU}(W_t t + b_t)]`.

    As in the baselines of IISAN (arXiv 2411.02992), images before texts.

    Args:
        widths: Width of the pooled vectors of each kind, `image` and `text` or one of them.
        head_size: Width of a kind's part of the content vector.
    """

    def __init__(self, widths: Mapping[str, int], head_size: int) -> None:
        layers = {kind: nn.Linear(widths[kind], head_size) for kind in _INPUTS if kind in widths}
        super().__init__({kind: nn.Sequential(layer, nn.GELU()) for kind, layer in layers.items()})
        self.content_size = head_size * len(layers)
        if "image" in layers:
            nn.init.xavier_normal_(layers["image"].weight)
            nn.init.zeros_(layers["image"].bias)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Content vectors, float32 [n, content_size], from the vectors of each kind, [n, width]."""
        return torch.cat([head(vectors[kind]).float() for kind, head in self.items()], dim=1)


class TunedEncoders(nn.Module):
    """Backbones that are trained by one method, and the heads on them.

    A state dict holds what is trained; frozen weights stay out of it, and strict loading does not ask for them.

    Args:
        backbones: One, or one of images and one of texts; taken over and changed.
        settings: How they are trained.
        fingerprint: Identifies the pretrained weights.
        poolings: How the tokens of an item become one vector, by kind; where it is None or missing, as is usual for
            the encoder.
        head_size: Width of a kind's part of the content vector.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: As given.

    Raises:
        PerPEFTError: Method or pooling do not fit a backbone.
    """

    def __init__(
        self,
        backbones: Iterable[Backbone],
        settings: TuningSettings,
        fingerprint: str,
        poolings: Mapping[str, str | None] | None = None,
        head_size: int = HEAD_SIZE,
    ) -> None:
        super().__init__()
        of_kind = {backbone.kind: backbone for backbone in backbones}
        self.foundation_fingerprint = fingerprint
        self.settings = settings
        chosen = poolings or {}
        self._poolings = {kind: backbone.check_pooling(chosen.get(kind)) for kind, backbone in of_kind.items()}
        self._origins = {kind: tune(backbone, settings) for kind, backbone in of_kind.items()}
        self.backbones = nn.ModuleDict({kind: of_kind[kind] for kind in _INPUTS if kind in of_kind})
        self.heads = ContentHeads({kind: backbone.width for kind, backbone in of_kind.items()}, head_size)
        self.content_size = self.heads.content_size

    def train(self, mode: bool = True) -> "TunedEncoders":
        """As in `nn.Module`, but dropout of the backbones is on only with `backbone_train_mode`."""
        super().train(mode)
        self.backbones.train(mode and self.settings.backbone_train_mode)
        return self

    def parameters_of(self, group: int | None) -> list[nn.Parameter]:
        """All that trains; it is the same for all groups."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of each parameter that trains.

        Returns:
            Name of parameter -> `recsys` (heads), `side_text` or `side_image` (what the method brought in),
            `backbone_text` or `backbone_image` (pretrained parameters).
        """
        groups = {
            f"backbones.{kind}.{name}": f"{origin}_{kind}"
            for kind, origins in self._origins.items()
            for name, origin in origins.items()
        }
        return groups | {f"heads.{name}": "recsys" for name, _ in self.heads.named_parameters()}

    def forward(self, group: int | None, **batch: Tensor) -> Tensor:
        """Encodes items.

        Args:
            group: Means nothing here.
            **batch: `pixel_values` uint8 [n, 3, H, W], `input_ids` and `attention_mask` [n, T], as far as the
                backbones read them.

        Returns:
            float32 [n, content_size]
        """
        return self.heads({kind: self._pooled(kind, batch) for kind in self.backbones})

    def _pooled(self, kind: str, batch: Mapping[str, Tensor]) -> Tensor:
        backbone = self.backbones[kind]
        inputs = {name: batch[name] for name in _INPUTS[kind]}
        # No state but the final one is kept.
        return backbone.pooled_states((), self._poolings[kind], **inputs)[1]


class FrozenStatesContent(nn.Module):
    """Content vectors from stored vectors of frozen encoders: only the heads train, and no encoder is in memory.

    Args:
        sources: Stored vectors by role, `image` and `text` or one of them; of two texts, one has the role `image`.
        item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.
        head_size: Width of a kind's part of the content vector.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies the encoders.

    Raises:
        PerPEFTError: An item is not in a source.
    """

    def __init__(
        self, sources: Mapping[str, FinalStateSource], item_tokens: Sequence[str], head_size: int = HEAD_SIZE
    ) -> None:
        super().__init__()
        self._sources = dict(sources)
        self._rows_of_item = {kind: source.rows_of(item_tokens) for kind, source in sources.items()}
        self.heads = ContentHeads({kind: source.width for kind, source in sources.items()}, head_size)
        self.content_size = self.heads.content_size
        self.foundation_fingerprint = _joint_fingerprint({kind: s.fingerprint for kind, s in sources.items()})

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of each parameter: all are `recsys`."""
        return {name: "recsys" for name, _ in self.named_parameters()}

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        items = items.cpu()
        rows = {kind: row_of_item[items] for kind, row_of_item in self._rows_of_item.items()}
        is_pad = torch.stack([some < 0 for some in rows.values()]).any(dim=0)
        content = self._encode({kind: some.clamp(min=0) for kind, some in rows.items()})
        return content.masked_fill(is_pad.to(content.device).unsqueeze(1), 0.0)

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        return self._encode({kind: source.rows_of(item_tokens) for kind, source in self._sources.items()})

    def _encode(self, rows: Mapping[str, Tensor]) -> Tensor:
        weight = next(self.heads.parameters())
        return self.heads({kind: self._sources[kind].final(some).to(weight) for kind, some in rows.items()})


def build_tuned_content(
    settings: TunedContentSettings,
    tuning: TuningSettings,
    content: ItemContent,
    item_tokens: Sequence[str],
    cache_folder: str | Path,
    show_progress: bool = True,
) -> AdaptedContent:
    """Loads the encoders, fills the cache of their inputs where needed, and puts the content encoder together.

    Args:
        settings: Which encoders.
        tuning: How they are trained.
        content: Titles and images, loaded for the kinds of content that the encoders read.
        item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.
        cache_folder: Where processor outputs are kept.
        show_progress: Whether to show a progress bar while the cache is filled.

    Raises:
        PerPEFTError: Settings, encoders or content cannot be used.
    """
    folder = Path(cache_folder)
    # What is wrong with the settings shows before the images are read.
    backbones = [Backbone.from_pretrained(name, kind) for kind, name in settings.encoders.items()]
    prints = {kind: describe_backbone(name, kind, folder).fingerprint for kind, name in settings.encoders.items()}
    poolings = {"image": settings.image_pooling, "text": settings.text_pooling}
    encoders = TunedEncoders(backbones, tuning, _joint_fingerprint(prints), poolings)
    processor = Processor.from_encoders(
        settings.encoders.get("text"), settings.encoders.get("image"), settings.max_text_length
    )
    if settings.text_pooling == "mean_all":
        processor.trim_text = False  # the vector of a text must not depend on the longest one beside it
    cache = ContentCache.open_or_build(content, processor, folder, show_progress=show_progress)
    rows = cache.rows_of(item_tokens)
    return AdaptedContent(encoders, cache, rows, settings.encoder_chunk_size, settings.gradient_checkpointing)


def _joint_fingerprint(fingerprints: Mapping[str, str]) -> str:
    return value_hash(dict(fingerprints))
