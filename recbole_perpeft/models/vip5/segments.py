"""Prompts as tensors: segments of words, names and visual tokens, put together without loops over rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Segment(NamedTuple):
    """Part of the prompts of a batch; rows may be shorter than its width.

    Attributes:
        tokens: int64 [B, w].
        visual: int64 [B, w]; item * k + j for its visual token j, -1 for other tokens.
        starts: bool [B, w], whether a token starts a word.
        valid: bool [B, w], whether there is a token.
    """

    tokens: Tensor
    visual: Tensor
    starts: Tensor
    valid: Tensor


class Prompt(NamedTuple):
    """Prompts of a batch, pads on the right.

    Attributes:
        tokens: int64 [B, S].
        visual: int64 [B, S], as in `Segment`.
        word: int64 [B, S], number of the word that a token belongs to, from 1; 0 for the end mark and pads.
        mask: bool [B, S], False at pads.
    """

    tokens: Tensor
    visual: Tensor
    word: Tensor
    mask: Tensor


def words_segment(tokens: Tensor, starts: Tensor, valid: Tensor) -> Segment:
    """A segment without visual tokens."""
    return Segment(tokens, torch.full_like(tokens, -1), starts, valid)


def mentions_segment(names: Tensor, items: Tensor, n_visual: int, separator: Tensor | None = None) -> Segment:
    """Items, each as its name and visual tokens, with a separator between two.

    Args:
        names: Tokens of every item's name, int64 [n_items, L]; -1 after the end.
        items: int64 [B, n]; 0 for none.
        n_visual: k.
        separator: Tokens of the separator, int64 [s]; None for none.

    Returns:
        Width n (L + k + s).
    """
    n_rows, n_items = items.shape
    separator = items.new_zeros(0) if separator is None else separator
    exists = (items > 0).unsqueeze(2)  # (B, n, 1)
    name = names[items]  # (B, n, L)
    slots = torch.arange(n_visual, device=items.device)
    # An item is followed by a separator if another one follows: the last items of a row come last.
    follows = functional.pad(items[:, 1:] > 0, (0, 1)).unsqueeze(2) & exists
    shape = (n_rows, n_items, -1)
    tokens = torch.cat([name.clamp(min=0), items.new_zeros(n_rows, n_items, n_visual), separator.expand(shape)], dim=2)
    visual = torch.cat(
        [
            torch.full_like(name, -1),
            items.unsqueeze(2) * n_visual + slots,
            torch.full((n_rows, n_items, len(separator)), -1, device=items.device),
        ],
        dim=2,
    )
    valid = torch.cat(
        [exists & (name >= 0), exists.expand(shape[:2] + (n_visual,)), follows.expand(shape[:2] + (len(separator),))],
        dim=2,
    )
    starts = torch.zeros_like(valid)
    starts[:, :, 0] = True
    starts[:, :, name.shape[2] : name.shape[2] + n_visual] = True
    if len(separator):
        starts[:, :, name.shape[2] + n_visual] = True
    return Segment(*(part.flatten(1) for part in (tokens, visual, starts, valid)))


def assemble(segments: Sequence[Segment], end: int, max_words: int) -> Prompt:
    """Puts segments one after the other, closes the gaps and adds the end mark.

    Args:
        segments: All with B rows.
        end: The end mark.
        max_words: Words that have a number; those beyond share the last one.
    """
    tokens, visual, starts, valid = (torch.cat(parts, dim=1) for parts in zip(*segments, strict=True))
    order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)
    length = valid.sum(dim=1)
    order = order[:, : int(length.max())]
    tokens, visual, starts, valid = (part.gather(1, order) for part in (tokens, visual, starts, valid))
    word = (starts & valid).long().cumsum(dim=1).clamp(min=1, max=max_words - 1) * valid
    tokens, visual, word = (
        functional.pad(part.masked_fill(~valid, filler), (0, 1), value=filler)
        for part, filler in ((tokens, 0), (visual, -1), (word, 0))
    )
    tokens.scatter_(1, length.unsqueeze(1), end)
    mask = torch.arange(tokens.shape[1], device=tokens.device) <= length.unsqueeze(1)
    return Prompt(tokens, visual, word, mask)
