"""Content vectors of the MoRec baselines: encoders trained with the recommender, or heads on frozen ones."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.nn.adapt.tuning import TuningSettings, tune
from recbole_perpeft.nn.content import ContentSource
from recbole_perpeft.pretrained.tower import Backbone

_INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}
_ROLES = ("image", "text")  # in this order in a content vector
HEAD_SIZE = 64


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
        widths: Width of the pooled vectors by role, `image` and `text` or one of them.
        head_size: Width of a role's part of the content vector.
    """

    def __init__(self, widths: Mapping[str, int], head_size: int) -> None:
        layers = {role: nn.Linear(widths[role], head_size) for role in _ROLES if role in widths}
        super().__init__({role: nn.Sequential(layer, nn.GELU()) for role, layer in layers.items()})
        self.content_size = head_size * len(layers)
        if "image" in layers:
            nn.init.xavier_normal_(layers["image"].weight)
            nn.init.zeros_(layers["image"].bias)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Content vectors, float32 [n, content_size], from the vectors of each role, [n, width]."""
        return torch.cat([head(vectors[role]).float() for role, head in self.items()], dim=1)


class TunedEncoders(nn.Module):
    """Backbones that are trained by one method, and the heads on them.

    A state dict holds what is trained; frozen weights stay out of it, and strict loading does not ask for them.

    Args:
        backbones: By role, `image` and `text` or one of them; of two texts, one has the role `image`. Taken over and
            changed.
        settings: How they are trained.
        fingerprint: Identifies the pretrained weights.
        poolings: How the tokens of an item become one vector, by role; where it is None or missing, as is usual for
            the encoder.
        head_size: Width of a role's part of the content vector.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: As given.

    Raises:
        PerPEFTError: Method or pooling do not fit a backbone.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        settings: TuningSettings,
        fingerprint: str,
        poolings: Mapping[str, str | None] | None = None,
        head_size: int = HEAD_SIZE,
    ) -> None:
        super().__init__()
        self.foundation_fingerprint = fingerprint
        self.settings = settings
        chosen = poolings or {}
        of_role = {role: backbones[role] for role in _ROLES if role in backbones}
        self._poolings = {role: backbone.check_pooling(chosen.get(role)) for role, backbone in of_role.items()}
        self._origins = {role: tune(backbone, settings) for role, backbone in of_role.items()}
        self.backbones = nn.ModuleDict(of_role)
        self.heads = ContentHeads({role: backbone.width for role, backbone in of_role.items()}, head_size)
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
            f"backbones.{role}.{name}": f"{origin}_{role}"
            for role, origins in self._origins.items()
            for name, origin in origins.items()
        }
        return groups | {f"heads.{name}": "recsys" for name, _ in self.heads.named_parameters()}

    def forward(self, group: int | None, **batch: Tensor) -> Tensor:
        """Encodes items.

        Args:
            group: Means nothing here.
            **batch: `pixel_values` uint8 [n, 3, H, W], `input_ids` and `attention_mask` [n, T], as far as the
                backbones read them; or these for each role, as from `InputsOfRoles`.

        Returns:
            float32 [n, content_size]
        """
        return self.heads({role: self._pooled(role, batch) for role in self.backbones})

    def _pooled(self, role: str, batch: Mapping[str, Tensor]) -> Tensor:
        backbone = cast(Backbone, self.backbones[role])
        names = {name: f"{role}_{name}" for name in _INPUTS[backbone.kind]}
        inputs = {name: batch[own if own in batch else name] for name, own in names.items()}
        # No state but the final one is kept.
        return backbone.pooled_states((), self._poolings[role], **inputs)[1]


class InputsOfRoles:
    """Inputs of two encoders that read other fields than their roles say, such as two texts.

    Satisfies `ContentSource` (`recbole_perpeft.nn.content`).

    Args:
        sources: Inputs of each by role, with the same items in the same rows.
    """

    def __init__(self, sources: Mapping[str, ContentSource]) -> None:
        self._sources = dict(sources)
        self._first = next(iter(sources.values()))
        self.n_rows = self._first.n_rows

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """As in `ContentSource`."""
        return self._first.rows_of(item_tokens)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """As in `ContentSource`, each name after its role: `text_input_ids`, `image_input_ids` ..."""
        parts = {role: source.batch(rows) for role, source in self._sources.items()}
        return {f"{role}_{name}": values for role, part in parts.items() for name, values in part.items()}


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
        self.foundation_fingerprint = joint_fingerprint({kind: s.fingerprint for kind, s in sources.items()})

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


def joint_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Identifies encoders by their roles."""
    return value_hash(dict(fingerprints))
