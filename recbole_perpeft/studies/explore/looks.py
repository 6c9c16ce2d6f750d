"""How each group sees one item: where in the photo and at which words of the title its score comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.model import PerPEFT
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.content import AdaptedContent, FrozenContent
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.studies.explore.relevance import relevance

_KINDS = ("text", "image")


@dataclass(frozen=True)
class Look:
    """How somebody sees an item.

    Attributes:
        patches: float [rows, columns], shares of the photo's patches; they add up to 1, or all are 0.
        words: Words of the title as written with their shares.
    """

    patches: np.ndarray
    words: tuple[tuple[str, float], ...]


def words_with_shares(title: str, shares: np.ndarray, offsets: np.ndarray) -> tuple[tuple[str, float], ...]:
    """Shares of the words of a title, which blanks divide.

    Args:
        title: As written.
        shares: float [T], of tokens.
        offsets: int [T, 2], where in the title a token begins and ends; equal for special tokens and padding.

    Returns:
        Words with their shares, which add up to 1 unless no token of the title has any.
    """
    words = list(re.finditer(r"\S+", title))
    of_words = np.zeros(len(words))
    starts = np.array([word.start() for word in words])
    real = offsets[:, 0] < offsets[:, 1]
    if len(words):
        np.add.at(of_words, np.searchsorted(starts, offsets[real, 0], side="right").clip(min=1) - 1, shares[real])
    total = of_words.sum()
    return tuple(
        (word.group(), float(share))
        for word, share in zip(words, of_words / total if total else of_words, strict=True)
    )


def patch_grid(shares: np.ndarray) -> np.ndarray:
    """Shares of square patches in rows, [side, side], without what is before them (a class token, registers)."""
    side = int(np.sqrt(len(shares)))
    patches = shares[len(shares) - side * side :].reshape(side, side)
    total = patches.sum()
    return patches / total if total else patches


class Eyes:
    """Looks at items as groups do, and as the foundation model does that nothing was changed of.

    The score whose origin is asked for is that of the mean user of a group: the product of the mean vector of its
    users and the content part of the item's vector. The untouched encoder is asked about the same product, so that a
    difference comes from the group's module.

    Args:
        model: A model with groups on a dual encoder, adapted or frozen.
        processor: What made the inputs of the foundation model.
        mean_users: float [C, d], mean user vector of every group.
        untouched: The foundation model without adapters.

    Without modules in the encoder (peft_type: none) groups differ in what their projectors make of it.

    Raises:
        PerPEFTError: The model reads stored states, or encoders of its own.
    """

    def __init__(self, model: PerPEFT, processor: Processor, mean_users: Tensor, untouched: FoundationModel) -> None:
        content = model.item_encoder.content_encoder
        if not isinstance(content, AdaptedContent | FrozenContent):
            raise PerPEFTError(
                "only a dual encoder as a whole (peft_type: lora and the like, or none) is looked through"
            )
        self._model, self._processor, self._mean_users, self._untouched = model, processor, mean_users, untouched
        self._content = content
        self._bank: AdapterBank | None = getattr(content, "bank", None)

    def look(self, item: int, title: str) -> tuple[list[Look], list[Look]]:
        """How an item is seen.

        Args:
            item: Internal id.
            title: Its title.

        Returns:
            By group, with the group's module, and by group without it; the latter is empty where there are none.
        """
        inputs = self._content.source.batch(self._content.row_of_item[torch.tensor([item])])
        offsets = self._processor.offsets(title)
        groups = range(len(self._mean_users))
        seen = [[self._seen(self._untouched.model, self._untouched, group, inputs) for group in groups]]
        if self._bank is not None:
            model, bank = self._bank.base_model, self._bank
            seen.insert(0, [self._seen(model, partial(bank, group), group, inputs) for group in groups])
        looks = [
            [Look(patch_grid(image), words_with_shares(title, text, offsets[: len(text)])) for text, image in shares]
            for shares in (*seen, [])
        ]
        return looks[0], looks[1]

    def pixels(self, item: int) -> np.ndarray:
        """The photo as the encoder reads it, uint8 [H, W, 3]."""
        inputs = self._content.source.batch(self._content.row_of_item[torch.tensor([item])])
        return inputs["pixel_values"][0].permute(1, 2, 0).numpy()

    def _seen(
        self, model: nn.Module, encode: Callable[..., Tensor], group: int, inputs: dict[str, Tensor]
    ) -> Sequence[np.ndarray]:
        encoder = self._model.item_encoder

        def score(content: Tensor) -> Tensor:
            return encoder.projectors.of(group)(content) @ self._mean_users[group]

        shares = relevance(model, _KINDS, encode, score, inputs)
        return [shares[kind][0].numpy() for kind in _KINDS]
