"""Encoders that are trained with the recommender for all users, the baselines of the IISAN papers."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.nn.adapt.tuning import Method, tune
from recbole_perpeft.nn.content import ContentSource
from recbole_perpeft.nn.joined_content import ROLES, ContentHeads
from recbole_perpeft.pretrained.tower import Backbone

_INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}


class TunedEncoders(nn.Module):
    """Backbones that are trained by one method, and the heads on them.

    A state dict holds what is trained; frozen weights stay out of it, and strict loading does not ask for them.

    Args:
        backbones: By role, `image` and `text` or one of them; of two texts, one has the role `image`. Taken over and
            changed.
        method: Says what is trained, and puts in what is new.
        fingerprint: Identifies the pretrained weights.
        poolings: How the tokens of an item become one vector, by role; where it is None or missing, as is usual for
            the encoder.
        train_mode: Whether the backbones' own dropout is on in training.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: As given.

    Raises:
        PerPEFTError: Method or pooling do not fit a backbone.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        method: Method,
        fingerprint: str,
        poolings: Mapping[str, str | None] | None = None,
        train_mode: bool = False,
    ) -> None:
        super().__init__()
        self.foundation_fingerprint = fingerprint
        self._train_mode = train_mode
        chosen = poolings or {}
        of_role = {role: backbones[role] for role in ROLES if role in backbones}
        self._poolings = {role: backbone.check_pooling(chosen.get(role)) for role, backbone in of_role.items()}
        tuned = {role: tune(backbone, method) for role, backbone in of_role.items()}
        self._origins = {role: origins for role, (origins, _) in tuned.items()}
        self._new_layers = tuple(layer for _, layers in tuned.values() for layer in layers)  # no modules of its own
        self.backbones = nn.ModuleDict(of_role)
        self.heads = ContentHeads({role: backbone.width for role, backbone in of_role.items()})
        self.content_size = self.heads.content_size

    def train(self, mode: bool = True) -> "TunedEncoders":
        """As in `nn.Module`, but the backbones' own dropout is on only with `train_mode`."""
        super().train(mode)
        self.backbones.train(mode and self._train_mode)
        for layer in self._new_layers:
            layer.training = mode
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

    @property
    def identity(self) -> str:
        """As in `ContentSource`."""
        return value_hash({role: source.identity for role, source in self._sources.items()})

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """As in `ContentSource`."""
        return self._first.rows_of(item_tokens)

    def text_lengths(self, rows: Tensor) -> Tensor | None:
        """As in `ContentSource`; of all texts of a row together."""
        found = [source.text_lengths(rows) for source in self._sources.values()]
        known = [lengths for lengths in found if lengths is not None]
        return sum(known[1:], known[0]) if known else None

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """As in `ContentSource`, each name after its role: `text_input_ids`, `image_input_ids` ..."""
        parts = {role: source.batch(rows) for role, source in self._sources.items()}
        return {f"{role}_{name}": values for role, part in parts.items() for name, values in part.items()}
