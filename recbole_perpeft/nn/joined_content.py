"""Content vectors of items from several towers, joined by heads or as they are."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.nn.content import ContentEncoder, rows_digest

ROLES = ("image", "text")  # in this order in a content vector
HEAD_SIZE = 64


class FinalStateSource(Protocol):
    """Pooled vectors after an encoder's final norm (`recbole_perpeft.store.states.HiddenStateCache`)."""

    width: int
    fingerprint: str

    @property
    def identity(self) -> str:
        """Identifies the vectors, and with them the content."""
        ...

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad."""
        ...

    def final(self, rows: Tensor) -> Tensor:
        """Vectors of rows, [n, width]."""
        ...


class ContentHeads(nn.ModuleDict):
    r"""Content vectors from vectors of towers: :math:`[\mathrm{GELU}(W_v v + b_v) ; \mathrm{GELU}(W_t t + b_t)]`.

    As in the baselines of IISAN (arXiv 2411.02992), images before texts.

    Args:
        widths: Width of the vectors by role, `image` and `text` or one of them.
        head_size: Width of a role's part of the content vector.
    """

    def __init__(self, widths: Mapping[str, int], head_size: int = HEAD_SIZE) -> None:
        layers = {role: nn.Linear(widths[role], head_size) for role in ROLES if role in widths}
        super().__init__({role: nn.Sequential(layer, nn.GELU()) for role, layer in layers.items()})
        self.content_size = head_size * len(layers)
        if "image" in layers:
            nn.init.xavier_normal_(layers["image"].weight)
            nn.init.zeros_(layers["image"].bias)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Content vectors, float32 [n, content_size], from the vectors of each role, [n, width]."""
        weight = next(self.parameters())
        return torch.cat([head(vectors[role].to(weight)).float() for role, head in self.items()], dim=1)


class UnitVectors(nn.Module):
    """Content vectors from vectors of towers, each brought to the length 1, images before texts.

    As a dual encoder's content is made (arXiv 2602.09445); nothing is trained.

    Args:
        widths: As in `ContentHeads`.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.content_size = sum(widths.values())

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """As in `ContentHeads`; zeros stay zeros."""
        present = (vectors[role].float() for role in ROLES if role in vectors)
        return torch.cat([functional.normalize(part, dim=1) for part in present], dim=1)


class StoredVectors(nn.Module):
    """Vectors of a frozen tower that are stored: no encoder is in memory. Satisfies `ContentEncoder`.

    Args:
        source: The vectors.
        item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.

    Raises:
        PerPEFTError: An item is not in the source.
    """

    reads_stored = True

    def __init__(self, source: FinalStateSource, item_tokens: Sequence[str]) -> None:
        super().__init__()
        self._source = source
        self._row_of_item = source.rows_of(item_tokens)
        self.content_size = source.width
        self.foundation_fingerprint = source.fingerprint

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`; nothing is trained here."""
        return {}

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        rows = self._row_of_item[items.cpu()]
        vectors = self._source.final(rows.clamp(min=0))
        return vectors.masked_fill((rows < 0).to(vectors.device).unsqueeze(1), 0.0)

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        return self._source.final(self._source.rows_of(item_tokens))

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return rows_digest(self._source.identity, self._row_of_item)


class JoinedContent(nn.Module):
    """Content vectors of one or two towers. Satisfies `ContentEncoder`.

    Args:
        towers: A content encoder of each tower by role, `image` and `text` or one of them; of two texts, one has the
            role `image`.
        heads: Makes one vector of theirs: `ContentHeads` or `UnitVectors` of their widths.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies the encoders.
    """

    def __init__(self, towers: Mapping[str, ContentEncoder], heads: ContentHeads | UnitVectors) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(cast(Mapping[str, nn.Module], towers))
        self.heads = heads
        self.content_size = heads.content_size
        self.foundation_fingerprint = joint_fingerprint({role: t.foundation_fingerprint for role, t in towers.items()})
        self.reads_stored = all(tower.reads_stored for tower in towers.values())

    def _encoders(self) -> dict[str, ContentEncoder]:
        return cast(dict[str, ContentEncoder], dict(self.towers.items()))

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`; a tower has the rates of its role."""
        return {
            f"towers.{role}.{name}": f"{group.partition('_')[0]}_{role}" if "_" in group else group
            for role, tower in self._encoders().items()
            for name, group in tower.parameter_groups().items()
        }

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; items may be on any device."""
        content = self.heads({role: tower(items, group) for role, tower in self._encoders().items()})
        return content.masked_fill((items == 0).to(content.device).unsqueeze(1), 0.0)

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`."""
        return self.heads({role: tower.encode_tokens(item_tokens, group) for role, tower in self._encoders().items()})

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return joint_fingerprint({role: tower.input_digest() for role, tower in self._encoders().items()})


def joint_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Identifies encoders by their roles."""
    return value_hash(dict(fingerprints))
