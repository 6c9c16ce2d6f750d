"""The description of a cache of hidden states: what it holds, what it was made from, and what has changed since."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError

FORMAT = "recbole_perpeft hidden states, version 1"
MANIFEST = "manifest.json"
# How a message calls what hidden states depend on.
_CALLED = {
    "fingerprint": "weights of the encoder",
    "quantization": "quantization",
    "pooling": "pooling",
    "dtype": "dtype",
    "max_length": "text length",
    "tokenizer": "tokenizer",
    "image": "image processor",
}


class UnusableStatesError(PerPEFTError):
    """The folder is damaged, or no cache of this version; building it again mends that."""


class ChangedStatesError(PerPEFTError):
    """The cache is of something else than what is asked for."""


@dataclass(frozen=True)
class Origin:
    """What hidden states depend on, content apart; JSON-able.

    Attributes:
        encoder: its name, which decides nothing.
        layers: states that are kept.
        parts: hash of its weights, pooling, tokenizer ... by name.
    """

    encoder: str
    layers: list[int]
    parts: dict[str, Any]

    def changes_to(self, wanted: "Origin") -> list[str]:
        """What has to be another for the wanted states; more layers than wanted do no harm."""
        names = sorted(self.parts.keys() | wanted.parts.keys(), key=[*_CALLED].index)
        changes = []
        for name in names:
            before, after = self.parts.get(name), wanted.parts.get(name)
            if before != after:
                is_short = all(
                    isinstance(value, str | int | None) and len(str(value)) < 20 for value in (before, after)
                )
                changes.append(_CALLED[name] + (f" ({before} -> {after})" if is_short else ""))
        if missing := sorted(set(wanted.layers) - set(self.layers)):
            changes.append(f"layers ({_listed(missing)} are not among {_listed(self.layers)})")
        return changes


@dataclass(frozen=True)
class FinishedStates:
    """A line of the journal: a chunk on the disk.

    Attributes:
        index: which chunk.
        checksums: CRC-32 of its rows by array, stamps of images apart.
        damaged: why an image cannot be used, by row.
    """

    index: int
    checksums: dict[str, int]
    damaged: dict[str, str]


@dataclass(frozen=True)
class StatesManifest:
    """What a cache holds, as written in `manifest.json`.

    Attributes:
        format: kind and version of the cache.
        data_set: name of the data set.
        field: field of the items.
        origin: what the states depend on.
        tokens: item ids in the order of the rows.
        width: size of a state.
        is_first_shared: whether state 0 is the same for all items and kept once.
        chunk_rows: rows of a chunk.
        chunks: how the rows were made.
        stamps: size and time of change of every file when it was last verified.
    """

    format: str
    data_set: str
    field: str
    origin: Origin
    tokens: list[str]
    width: int
    is_first_shared: bool
    chunk_rows: int
    chunks: list[FinishedStates]
    stamps: dict[str, list[int]]

    @classmethod
    def read(cls, folder: Path) -> "StatesManifest":
        """Raises `UnusableStatesError` if there is no manifest of this version."""
        file = folder / MANIFEST
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            found = values["format"]
            if found == FORMAT:
                values["origin"] = Origin(**values["origin"])
                values["chunks"] = [FinishedStates(**chunk) for chunk in values["chunks"]]
                return cls(**values)
        except OSError as error:
            raise UnusableStatesError(f"{file}: cannot be read ({error.strerror}).") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UnusableStatesError(f"{file}: is no manifest of hidden states ({error!r}).") from error
        raise UnusableStatesError(f"{file}: holds {found!r}, not {FORMAT!r}.")

    def write(self, file: Path) -> None:
        with open(file, "w", encoding="utf-8") as opened:
            json.dump(asdict(self), opened, ensure_ascii=False)
            opened.flush()
            os.fsync(opened.fileno())

    def check(self, data_set: str, field: str, origin: Origin, tokens: Sequence[str]) -> None:
        """Raises `ChangedStatesError`, naming what differs, unless this is the cache that is asked for."""
        changes = []
        if self.data_set != data_set:
            changes.append(f"data set ({self.data_set} -> {data_set})")
        if self.field != field:
            changes.append(f"field ({self.field} -> {field})")
        changes += self.origin.changes_to(origin) + self._item_changes(list(tokens))
        if changes:
            raise ChangedStatesError(f"changed since it was built: {'; '.join(changes)}.")

    def _item_changes(self, tokens: list[str]) -> list[str]:
        if tokens == self.tokens:
            return []
        known, wanted = set(self.tokens), set(tokens)
        if known == wanted:
            row = next(row for row, pair in enumerate(zip(self.tokens, tokens, strict=True)) if pair[0] != pair[1])
            return [f"order of the items (from row {row}, {self.tokens[row]!r} -> {tokens[row]!r})"]
        differences = ((wanted - known, "new"), (known - wanted, "gone"))
        return [f"{len(items)} items {what} ({min(items)!r} ...)" for items, what in differences if items]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"
