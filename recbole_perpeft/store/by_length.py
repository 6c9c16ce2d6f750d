"""Texts of like length pass through an encoder together, so that little of a batch is padding."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Texts are sorted by length within so many chunks: the more, the less padding, and the more vectors are held.
CHUNKS_AT_ONCE = 8


class TextLengths(Protocol):
    """Tells how long texts are (`recbole_perpeft.store.inputs.ContentCache`)."""

    def text_lengths(self, rows: Tensor) -> Tensor | None:
        """Tokens of each row's text, [n]; None where all rows are equally long to the encoder."""
        ...


def chunks_by_length(lengths: Tensor | None, n_rows: int, chunk_size: int) -> tuple[Tensor, ...]:
    """Places of rows, shortest texts first, in chunks; with lengths [n_rows] None in their order."""
    order = torch.arange(n_rows) if lengths is None else lengths.argsort(stable=True)
    return order.split(chunk_size)


def encoded_by_length(
    source: TextLengths, rows: Tensor, chunk_size: int, encode: Callable[[Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """Encodes rows chunk by chunk, texts of like length together: a batch is as long as its longest text.

    Args:
        source: Tells the lengths.
        rows: Rows of the source, [n].
        chunk_size: Rows at once.
        encode: What a chunk of rows becomes, [m, ...] each.

    Returns:
        The same for all rows in their order, [n, ...] each.
    """
    if len(rows) <= chunk_size:
        return list(encode(rows))
    places = chunks_by_length(source.text_lengths(rows), len(rows), chunk_size)
    chunks = zip(*(encode(rows[part]) for part in places), strict=True)
    back = torch.cat(places).argsort()
    return [torch.cat(parts)[back.to(parts[0].device)] for parts in chunks]
