"""Content vectors of items, from an adapted foundation model or from a frozen one."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from recbole_perpeft.core.digest import digest
from recbole_perpeft.nn.adapt.frozen_prefix import FrozenPrefix
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.store.by_length import CHUNKS_AT_ONCE, encoded_by_length
from recbole_perpeft.store.rows import RowFiles, computed_rows


class ContentSource(Protocol):
    """Inputs of the foundation model for every row of the content (`recbole_perpeft.store.inputs.ContentCache`)."""

    n_rows: int

    @property
    def identity(self) -> str:
        """Identifies content and processor."""
        ...

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad."""
        ...

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """`pixel_values`, `input_ids` and `attention_mask` of rows, on the CPU."""
        ...

    def text_lengths(self, rows: Tensor) -> Tensor | None:
        """Tokens of each row's text, [n]; None where all rows are equally long to the encoder."""
        ...


class ContentModel(Protocol):
    """A model that reads those inputs, and what is trained in it (`AdapterBank`, `TunedEncoders`)."""

    content_size: int
    foundation_fingerprint: str

    def __call__(self, group: int | None, **batch: Tensor) -> Tensor:
        """Content vectors of a batch, [n, content_size]."""
        ...

    def parameters_of(self, group: int | None) -> list[nn.Parameter]:
        """What is trained for a group."""
        ...

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`."""
        ...


class ContentEncoder(Protocol):
    """Turns items into content vectors; `ItemEncoder` does not know how.

    Attributes:
        content_size: Width of a content vector.
        foundation_fingerprint: Identifies the frozen weights.
        reads_stored: Whether it reads stored vectors or states, so that no item passes through a foundation model.
    """

    content_size: int
    foundation_fingerprint: str
    reads_stored: bool

    def __call__(self, items: Tensor, group: int | None) -> Tensor:
        """Content vectors of items, [n, content_size], on any device; the pad's vector is zero."""
        ...

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """Content vectors of items that have content but no id, [n, content_size]."""
        ...

    def input_digest(self) -> str:
        """Identifies what is read of each item; without this method, no item vectors are kept beside a model."""
        ...

    def parameter_groups(self) -> dict[str, str]:
        """Learning-rate group of parameters by name.

        Returns:
            `side_text`, `side_image`, `backbone_text`, `backbone_image` or `recsys`; `recsys` for those left out.
        """
        ...


class NoContent(nn.Module):
    """Content that says nothing, of width 0: items are what their ids have learnt. Satisfies `ContentEncoder`."""

    reads_stored = True
    content_size = 0
    foundation_fingerprint = "none"

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`."""
        return {}

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`."""
        return torch.zeros(len(items), 0)

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`."""
        return torch.zeros(len(item_tokens), 0)

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return "none"


class AdaptedContent(nn.Module):
    """Content vectors from a foundation model that is adapted, as with one PEFT module a group.

    Args:
        bank: Foundation model and what is trained in it.
        source: Inputs of the foundation model.
        row_of_item: Row of each item in `source`, [n_items]; -1 for the pad.
        chunk_size: Items that pass through the foundation model at once.
        gradient_checkpointing: Keep no activations of a chunk, and compute it again in the backward pass.
        prefix: Stored states of the frozen blocks at the start of the foundation model; None computes them.
    """

    reads_stored = False

    def __init__(
        self,
        bank: ContentModel,
        source: ContentSource,
        row_of_item: Tensor,
        chunk_size: int,
        gradient_checkpointing: bool = False,
        prefix: FrozenPrefix | None = None,
    ) -> None:
        super().__init__()
        self._prefix = prefix
        self.bank = bank
        self.source = source
        self.row_of_item = row_of_item
        self.chunk_size = chunk_size
        self.gradient_checkpointing = gradient_checkpointing
        self.content_size = bank.content_size
        self.foundation_fingerprint = bank.foundation_fingerprint

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`."""
        return {f"bank.{name}": group for name, group in self.bank.parameter_groups().items()}

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; items may be on any device."""
        rows = self.row_of_item[items.cpu()]
        device = self.bank.parameters_of(group)[0].device
        real = (rows >= 0).nonzero().flatten()
        content = torch.zeros(len(rows), self.content_size, device=device)
        if not len(real):
            return content
        return content.index_copy(0, real.to(device), self._encode_rows(rows[real], group))

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`."""
        return self._encode_rows(self.source.rows_of(item_tokens), group)

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return rows_digest(self.source.identity, self.row_of_item)

    def _encode_rows(self, rows: Tensor, group: int | None) -> Tensor:
        def encode(part: Tensor) -> tuple[Tensor]:
            return (self._encode_chunk(self.inputs(part), group),)

        return encoded_by_length(self.source, rows, self.chunk_size, encode)[0]

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        """What the foundation model needs of rows of the source, on the CPU."""
        batch = self.source.batch(rows)
        if self._prefix is None:
            return batch
        n_tokens = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        return batch | self._prefix.batch(rows, n_tokens)

    def _encode_chunk(self, batch: dict[str, Tensor], group: int | None) -> Tensor:
        device = self.bank.parameters_of(group)[0].device
        inputs: dict[str, Any] = {name: _to_device(tensor, device) for name, tensor in batch.items()}
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.encode, group, use_reentrant=False, **inputs)
        return self.encode(group, **inputs)

    def encode(self, group: int | None, **inputs: Tensor) -> Tensor:
        """Content vectors from `inputs` on the device of the model, [n, content_size]."""
        if self._prefix is None:
            return self.bank(group, **inputs)
        with self._prefix.supplied(inputs) as others:
            return self.bank(group, **others)


class FrozenContent(nn.Module):
    """Content vectors of a frozen foundation model, computed once for a catalogue and kept in a file.

    The file is mapped into memory. The foundation model is not kept: it is loaded for vectors that the file lacks.

    Args:
        load_foundation: Loads the foundation model.
        source: Inputs of the foundation model.
        row_of_item: Row of each item in `source`, [n_items]; -1 for the pad.
        cache_folder: Where the file goes.
        inputs_fingerprint: Identifies content and processor; with that of the weights, it names the file.
        chunk_size: Items that pass through the foundation model at once.
        show_progress: Whether to show a progress bar while the file is made.
    """

    reads_stored = True

    def __init__(
        self,
        load_foundation: Callable[[], FoundationModel],
        source: ContentSource,
        row_of_item: Tensor,
        cache_folder: Path,
        inputs_fingerprint: str,
        chunk_size: int,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        self.source = source
        self.row_of_item = row_of_item
        foundation = load_foundation()
        self.foundation_fingerprint = foundation.fingerprint
        self.content_size = foundation.content_size
        self._name = f"content-vectors-{inputs_fingerprint}-{foundation.fingerprint}"
        files = RowFiles(Path(cache_folder), {self._name: ("<f4", (self.content_size,))}, source.n_rows)
        compute = functools.partial(_computed_vectors, foundation, source, chunk_size, show_progress)
        self._vectors = computed_rows(files, "content vectors", compute)

    def parameter_groups(self) -> dict[str, str]:
        """As in `ContentEncoder`; nothing is trained here."""
        return {}

    def forward(self, items: Tensor, group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        return self._vectors.take(self._name, self.row_of_item[items.cpu()])

    def encode_tokens(self, item_tokens: Sequence[str], group: int | None) -> Tensor:
        """As in `ContentEncoder`; the same for all groups."""
        return self._vectors.take(self._name, self.source.rows_of(item_tokens))

    def input_digest(self) -> str:
        """As in `ContentEncoder`."""
        return rows_digest(self._name, self.row_of_item)


def rows_digest(identity: str, rows: Tensor) -> str:
    """Identifies what items get from rows of a source, int64 [..., n_items]."""
    return digest(identity.encode(), rows.numpy().tobytes()).hexdigest()


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies without waiting for the accelerator, so that the next chunk is gathered while this one is computed."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@torch.no_grad()
def _computed_vectors(
    foundation: FoundationModel, source: ContentSource, chunk_size: int, show_progress: bool
) -> Iterator[list[Tensor]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    foundation = foundation.to(device)

    def encode(rows: Tensor) -> tuple[Tensor]:
        return (foundation(**{name: _to_device(tensor, device) for name, tensor in source.batch(rows).items()}),)

    chunks = torch.arange(source.n_rows).split(CHUNKS_AT_ONCE * chunk_size)
    for rows in tqdm(chunks, desc="Encode content", unit="chunk", disable=not show_progress):
        yield encoded_by_length(source, rows, chunk_size, encode)
