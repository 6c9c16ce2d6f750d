"""Writing prompts: templates, samples and tables of texts become tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.models.vip5.names import TokenNames
from recbole_perpeft.models.vip5.network import N_WHOLE_WORDS
from recbole_perpeft.models.vip5.segments import Prompt, Segment, assemble, mentions_segment, words_segment
from recbole_perpeft.models.vip5.t5 import WORD_MARK
from recbole_perpeft.models.vip5.templates import Template, parts_of

SEPARATOR = ","
YES, NO = "yes", "no"


@dataclass(frozen=True)
class PromptSettings(Settings):
    """Limits of prompts."""

    max_input_tokens: int = setting(1024, "Longer histories keep their newest items.", least=1)
    max_target_tokens: int = setting(64, "Words of an explanation, the end mark included.", least=2)
    max_text_tokens: int = setting(30, "Words of a title, headline or feature.", least=1)


@dataclass(frozen=True)
class Sample:
    """What fills the slots of a template, for B rows.

    Args:
        users: int64 [B].
        items: int64 [B].
        history: int64 [B, L], left-padded with 0, oldest first.
        candidates: int64 [B, C].
        rows: Rows of the explanations, int64 [B].
        is_positive: bool [B]; whether the answer to a question is yes.
    """

    users: Tensor
    items: Tensor
    history: Tensor | None = None
    candidates: Tensor | None = None
    rows: Tensor | None = None
    is_positive: Tensor | None = None

    def column(self, name: str) -> Tensor:
        """A column that a template needs."""
        column = getattr(self, name)
        if column is None:
            raise ValueError(f"the sample has no {name}")
        return column

    def split(self, size: int) -> list["Sample"]:
        """Samples of at most `size` rows."""
        columns = {one.name: getattr(self, one.name) for one in fields(self)}
        parts = [column.split(size) for column in columns.values() if column is not None]
        names = [name for name, column in columns.items() if column is not None]
        return [Sample(**dict(zip(names, part, strict=True))) for part in zip(*parts, strict=True)]


class PromptWriter(nn.Module):
    """Turns samples into prompts and targets. Its tables are no part of a state dict.

    Args:
        tokenizer: Spells words.
        n_words: Rows of the backbone's table of words.
        item_names: Names of the items 1 .. n.
        user_names: Names of all users 0 .. m.
        n_visual: k.
        titles: Titles of the items 1 .. n; empty when no template has them.
        explanations: Rows with `feature`, `headline`, `explanation` and `rating`, as far as templates have them.
        settings: Limits.
    """

    is_start: Tensor
    item_names: Tensor
    user_names: Tensor
    separator: Tensor
    titles: Tensor
    answers: Tensor

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_words: int,
        item_names: TokenNames,
        user_names: TokenNames,
        n_visual: int,
        titles: Sequence[str],
        explanations: pd.DataFrame,
        settings: PromptSettings,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._n_visual = n_visual
        self._tokenizer = tokenizer
        self._end = tokenizer.eos_token_id
        starts = [
            piece.startswith(WORD_MARK) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ]
        self._keep("is_start", torch.tensor(starts))
        n_own = 0 if item_names.words is not None else item_names.n_tokens
        names = _global_names(item_names, n_words)
        if item_names.words is not None:  # a mention in the text has no end mark
            names = torch.where(names == self._end, -1, names)
        self._keep("item_names", torch.cat([torch.full_like(names[:1], -1), names]))
        users = _global_names(user_names, n_words + n_own)
        self._keep("user_names", torch.where(users == self._end, -1, users) if user_names.words is not None else users)
        self.n_new = n_own + (0 if user_names.words is not None else user_names.n_tokens)
        self._keep("separator", self._spell(SEPARATOR))
        self._keep("titles", self._table(["", *titles]))
        self._keep("answers", self._table([NO, YES], end=True))
        columns = {name: explanations[name].tolist() for name in ("feature", "headline") if name in explanations}
        if "rating" in explanations:
            columns["rating"] = explanations["rating"].round().astype(int).astype(str).tolist()
        for name, texts in columns.items():
            self._keep(name, self._table(texts))
        self._explanations = explanations
        self._words: dict[str, Tensor] = {}
        self._targets: dict[str, Tensor] = {}

    def check(self, templates: Sequence[Template], n_candidates: int) -> None:
        """Writes one prompt of every template.

        Raises:
            PerPEFTError: A template has slots that these data cannot fill, or its prompts are longer than the limit.
        """
        one = torch.ones(1, dtype=torch.long, device=self.separator.device)
        sample = Sample(one, one, one.view(1, 1), one.expand(1, n_candidates), 0 * one, one > 0)
        for template in templates:
            self.write(template, sample)
            if template.answers == "words":
                self.target_words(template, sample)

    def write(self, template: Template, sample: Sample) -> Prompt:
        """Prompts of a batch.

        Raises:
            PerPEFTError: The template has a slot that these data cannot fill, or longer prompts than the limit.
        """
        n_rows, segments, history_place = len(sample.users), [], None
        for part in template.parts:
            if part.text:
                segments.append(self._text(part.text, n_rows))
            if part.slot == "history":
                history_place = len(segments)
            elif part.slot:
                segments.extend(self._slot(template, part.slot, sample))
        n_other = 1 + sum(segment.tokens.shape[1] for segment in segments)
        if history_place is not None:
            newest = self._newest(template, sample.column("history"), n_other)
            segments.insert(history_place, self._mentions(newest, self.separator))
        elif n_other > self.settings.max_input_tokens:
            self._too_long(template, n_other)
        return assemble(segments, self._end, N_WHOLE_WORDS)

    def target_words(self, template: Template, sample: Sample) -> Tensor:
        """Answers in words with the end mark, int64 [B, T]; -1 after it."""
        if template.answers == "answer":
            return self.answers[sample.column("is_positive").long()].long()
        if template.target not in self._targets:
            self._targets[template.target] = self._table(self.references(template), end=True)
        return self._here(self._targets, template.target)[sample.column("rows")].long()

    def references(self, template: Template, rows: np.ndarray | None = None) -> list[str]:
        """The answers of explanation rows (all by default) as texts."""
        chosen = self._explanations if rows is None else self._explanations.iloc[rows]
        text = pd.Series("", index=chosen.index)
        for part in parts_of(template.target, template.name):
            if part.slot and part.slot not in chosen:
                self._lacks(template, part.slot)
            values: Any = "" if part.slot is None else chosen[part.slot]
            if part.slot == "rating":
                values = values.round().astype(int).astype(str)
            text = text + f" {part.text} " + values
        return text.str.split().str.join(" ").tolist()

    def _slot(self, template: Template, slot: str, sample: Sample) -> list[Segment]:
        if slot == "user":
            return [self._name(self.user_names[sample.users])]
        if slot == "item":
            return [self._mentions(sample.items.unsqueeze(1))]
        if slot == "title":
            if self.titles.shape[1] == 0:
                self._lacks(template, slot)
            visual = [] if not self._n_visual else [self._visual(sample.items.unsqueeze(1))]
            return [self._ragged(self.titles[sample.items]), *visual]
        if slot == "candidates":
            return [self._mentions(sample.column("candidates"), self.separator)]
        if slot not in self._buffers:
            self._lacks(template, slot)
        return [self._ragged(self.get_buffer(slot)[sample.column("rows")])]

    def _newest(self, template: Template, history: Tensor, n_other: int) -> Tensor:
        an_item = self.item_names.shape[1] + self._n_visual + len(self.separator)
        n_items = (self.settings.max_input_tokens - n_other) // an_item
        if n_items < 1:
            self._too_long(template, n_other + an_item)
        return history[:, -n_items:]

    def _mentions(self, items: Tensor, separator: Tensor | None = None) -> Segment:
        return mentions_segment(self.item_names, items, self._n_visual, separator)

    def _visual(self, items: Tensor) -> Segment:
        return mentions_segment(self.item_names[:, :0], items, self._n_visual)

    def _name(self, tokens: Tensor) -> Segment:
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[:, 0] = True
        return words_segment(tokens.clamp(min=0), starts, tokens >= 0)

    def _ragged(self, tokens: Tensor) -> Segment:
        words = tokens.long().clamp(min=0)
        return words_segment(words, self.is_start[words], tokens >= 0)

    def _text(self, text: str, n_rows: int) -> Segment:
        if text not in self._words:
            self._words[text] = self._spell(text)
        return self._ragged(self._here(self._words, text).expand(n_rows, -1))

    def _here(self, store: dict[str, Tensor], key: str) -> Tensor:
        """A tensor of a store, which stays on the device of the tables from now on."""
        if store[key].device != self.is_start.device:
            store[key] = store[key].to(self.is_start.device)
        return store[key]

    def _table(self, texts: Sequence[str], end: bool = False) -> Tensor:
        """Words of texts, int32 [n, T]; -1 after the last. Each distinct text is spelt once."""
        limit = self.settings.max_target_tokens - 1 if end else self.settings.max_text_tokens
        place, distinct = pd.factorize(np.array(texts, dtype=object))
        ids = self._tokenizer(list(distinct), add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]
        ids = [[*row, self._end] for row in ids] if end else ids
        lengths = np.array([len(row) for row in ids])
        table = np.full((len(ids), lengths.max(initial=0)), -1, dtype=np.int32)
        table[np.arange(table.shape[1]) < lengths[:, None]] = [word for row in ids for word in row]
        return torch.from_numpy(table[place])

    def _spell(self, text: str) -> Tensor:
        return torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    def _keep(self, name: str, table: Tensor) -> None:
        self.register_buffer(name, table, persistent=False)

    def _lacks(self, template: Template, slot: str) -> None:
        raise PerPEFTError(
            f"prompts: the template {template.name} has the slot {{{slot}}}, which these data do not have; add it to "
            "the side file or the item file, or set prompts to a file of templates without it"
        )

    def _too_long(self, template: Template, n_tokens: int) -> None:
        raise PerPEFTError(
            f"max_input_tokens: the template {template.name} needs {n_tokens} tokens, more than "
            f"{self.settings.max_input_tokens}; raise the limit, or lower n_candidates or n_visual_tokens"
        )


def _global_names(names: TokenNames, first: int) -> Tensor:
    """Names in token ids of the network: words, or ids from `first` on."""
    tokens = torch.from_numpy(names.names)
    if names.words is None:
        return torch.where(tokens < 0, -1, tokens + first)
    return torch.where(tokens < 0, -1, torch.from_numpy(names.words)[tokens.clamp(min=0)])


def template_words(templates: Mapping[str, Template]) -> list[str]:
    """All that templates say themselves."""
    texts = [part.text for one in templates.values() for part in (*one.parts, *parts_of(one.target, one.name))]
    return [*texts, SEPARATOR, YES, NO, *"12345"]
