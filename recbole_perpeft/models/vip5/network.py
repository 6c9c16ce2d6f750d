"""The network of VIP5: prompts with names and visual tokens in, names of items or words out."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.models.vip5.segments import Prompt
from recbole_perpeft.models.vip5.t5 import T5Backbone
from recbole_perpeft.models.vip5.trie import ItemTrie
from recbole_perpeft.models.vip5.visual import VisualTokens

# Sizes of the authors' tables; of the categories, text and image are used.
N_WHOLE_WORDS, N_CATEGORIES = 1024, 16
# Share of the variance of users' vectors that all users start with in common. It marks a token as a user, so that
# attention finds it before anything is known of the single user.
COMMON_VARIANCE = 0.5
_LENGTH_POWERS = MappingProxyType({"sum": 0, "mean": 1, "inverse": 2})


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """What is added to embeddings, and what a loss is."""

    word_tables: Literal["trained", "random"] = setting(
        "trained", "Vectors of whole words and categories: trained from zero | random as in the authors' code."
    )
    softmax_scope: Literal["names", "vocabulary"] = setting(
        "names", "Names of items compete with names | with the whole vocabulary as in the paper."
    )
    length_weight: Literal["sum", "mean", "inverse"] = setting(
        "mean", "mean over the tokens of a target (the paper) | sum | inverse: divided by their number twice."
    )
    loss_type: Literal["CE"] = setting("CE", "Cross-entropy; no other negatives are drawn.")


class NameVectors(NamedTuple):
    """What vectors of names start from, entries of variance 1: [M, d] each, or None for random vectors."""

    items: Tensor | None = None
    users: Tensor | None = None


RANDOM = NameVectors()


class Encoded(NamedTuple):
    """What the encoder makes of prompts: states [B, S, d] and mask [B, S]."""

    states: Tensor
    mask: Tensor


class VIP5Network(nn.Module):
    """Backbone, visual tokens, tokens of names and the tables that are added to embeddings.

    Token ids below `backbone.n_words` are words; those of items follow, then those of users, unless they are named in
    words.

    Args:
        backbone: T5 with adapters.
        visual: Visual tokens; None for a model without images.
        trie: Names of items.
        item_words: int64 [M], if items are named in words; None for tokens of their own.
        n_new: Number of tokens that are no words.
        settings: Tables and losses.
        starts: What tokens of names start from.
    """

    item_vocabulary: Tensor

    def __init__(
        self,
        backbone: T5Backbone,
        visual: VisualTokens | None,
        trie: ItemTrie,
        item_words: Tensor | None,
        n_new: int,
        settings: NetworkSettings,
        starts: NameVectors = RANDOM,
    ) -> None:
        super().__init__()
        self.backbone, self.visual, self.trie = backbone, visual, trie
        self._scope = settings.softmax_scope
        self._length_power = _LENGTH_POWERS[settings.length_weight]
        self.whole_word = nn.Embedding(N_WHOLE_WORDS, backbone.width)
        self.category = nn.Embedding(N_CATEGORIES, backbone.width)
        if settings.word_tables == "trained":
            for table in (self.whole_word, self.category):
                nn.init.zeros_(table.weight)
        else:
            self.whole_word.requires_grad_(False)
            self.category.requires_grad_(False)
        self.new_tokens = nn.Embedding(n_new, backbone.width) if n_new else None
        if self.new_tokens is not None:
            n_items = 0 if item_words is not None else trie.n_tokens
            _start_names(self.new_tokens.weight, n_items, _spread(backbone.output_weight), starts)
        vocabulary = backbone.n_words + torch.arange(trie.n_tokens) if item_words is None else item_words
        self.register_buffer("item_vocabulary", vocabulary, persistent=False)
        self._items_are_words = item_words is not None
        self._logits = MappingProxyType({"names": self._allowed_logits, "vocabulary": self._vocabulary_logits})

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """Input vectors of words and names, [..., d]."""
        n_words = self.backbone.n_words
        if self.new_tokens is None:
            return self.backbone.word_vectors(tokens)
        words = self.backbone.word_vectors(tokens.clamp(max=n_words - 1))
        names = self.new_tokens((tokens - n_words).clamp(min=0))
        return torch.where((tokens < n_words).unsqueeze(-1), words, names)

    def prompt_vectors(self, prompt: Prompt) -> Tensor:
        """Inputs of the encoder, [B, S, d]: words or visual tokens, plus whole word, plus category."""
        vectors = self.token_vectors(prompt.tokens)
        is_visual = prompt.visual >= 0
        if self.visual is not None:
            flat = prompt.visual[is_visual]
            k = self.visual.n_tokens
            tokens = self.visual(flat // k)[torch.arange(len(flat), device=flat.device), flat % k]
            vectors = vectors.masked_scatter(is_visual.unsqueeze(-1), tokens.to(vectors.dtype))
        return vectors + self.whole_word(prompt.word) + self.category(is_visual.long())

    def encode(self, prompt: Prompt) -> Encoded:
        """Encoder states of prompts."""
        return Encoded(self.backbone.encode(self.prompt_vectors(prompt), prompt.mask), prompt.mask)

    def node_vectors(self, nodes: Tensor) -> Tensor:
        """Decoder inputs for nodes of the trie, [..., d]: the last token of a node's name; the start for the root."""
        token = self.trie.node_token[nodes]
        words = torch.where(token < 0, self.backbone.start_word, self.item_vocabulary[token.clamp(min=0)])
        return self.token_vectors(words)

    def item_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the tokens of item names, [..., M], for decoder states [..., d]."""
        if self._items_are_words or self.new_tokens is None:
            weight = self.backbone.output_weight[self.item_vocabulary]
        else:
            weight = self.new_tokens.weight[: self.trie.n_tokens]
        return functional.linear(hidden * self.backbone.output_scale, weight)

    def child_log_probabilities(self, hidden: Tensor, nodes: Tensor) -> Tensor:
        """Log-probabilities of the tokens that may follow nodes, [..., M]; -inf for others.

        Args:
            hidden: Decoder states at the nodes, [..., d].
            nodes: int64, broadcast against `hidden` without its last dimension.
        """
        logits = self.item_logits(hidden).float()
        return logits.masked_fill(~self.trie.allowed(nodes), -torch.inf).log_softmax(dim=-1)

    def item_log_probabilities(self, encoded: Encoded, items: Tensor, scope: str = "names") -> tuple[Tensor, Tensor]:
        """Teacher forcing: log-probabilities of the tokens of items' names.

        Args:
            encoded: Prompts.
            items: int64 [B].
            scope: As `softmax_scope`.

        Returns:
            [B, L], zeros after the end of a name, and bool [B, L], whether there is a token.
        """
        nodes, tokens, exists = self.trie.paths(items)
        hidden = self.backbone.decode(self.node_vectors(nodes), *encoded)
        log_probabilities, targets = self._logits[scope](hidden, nodes, tokens)
        chosen = log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return chosen.masked_fill(~exists, 0.0), exists

    def _allowed_logits(self, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        # After the end of a name stands any token; 0 in its place keeps the gather within what is allowed or not.
        return self.child_log_probabilities(hidden, nodes), tokens

    def _vocabulary_logits(self, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.word_log_probabilities(hidden, with_names=True), self.item_vocabulary[tokens]

    def word_log_probabilities(self, hidden: Tensor, with_names: bool = False) -> Tensor:
        """Log-probabilities of words, [..., n_words]; `with_names` followed by the tokens of names."""
        scaled = hidden * self.backbone.output_scale
        logits = functional.linear(scaled, self.backbone.output_weight)
        if with_names and self.new_tokens is not None:
            logits = torch.cat([logits, functional.linear(scaled, self.new_tokens.weight)], dim=-1)
        return logits.float().log_softmax(dim=-1)

    def item_loss(self, prompt: Prompt, items: Tensor) -> Tensor:
        """Loss of prompts whose answers are items [B]."""
        return self._loss(*self.item_log_probabilities(self.encode(prompt), items, self._scope))

    def words_loss(self, prompt: Prompt, targets: Tensor) -> Tensor:
        """Loss of prompts whose answers are words.

        Args:
            prompt: Prompts.
            targets: int64 [B, T], the end mark included; -1 after it.
        """
        exists = targets >= 0
        words = targets.clamp(min=0)
        inputs = functional.pad(words[:, :-1], (1, 0), value=self.backbone.start_word)
        hidden = self.backbone.decode(self.token_vectors(inputs), *self.encode(prompt))
        chosen = self.word_log_probabilities(hidden).gather(-1, words.unsqueeze(-1)).squeeze(-1)
        return self._loss(chosen.masked_fill(~exists, 0.0), exists)

    def _loss(self, log_probabilities: Tensor, exists: Tensor) -> Tensor:
        length = exists.sum(dim=1)
        return (-log_probabilities.sum(dim=1) / length**self._length_power).mean()

    def generate(self, prompt: Prompt, n_beams: int, max_tokens: int) -> list[str]:
        """Words that answer prompts: greedy for one beam, beam search of transformers for more."""
        states, mask = self.encode(prompt)
        tokens = self.backbone.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            decoder_start_token_id=self.backbone.start_word,
            num_beams=n_beams,
            do_sample=False,
            max_new_tokens=max_tokens,
        )
        return self.backbone.tokenizer.batch_decode(tokens, skip_special_tokens=True)


@torch.no_grad()
def _start_names(weight: Tensor, n_items: int, spread: float, starts: NameVectors) -> None:
    """Fills the vectors of names with entries of standard deviation `spread`.

    Args:
        weight: Those of items, then those of users, [n, d]; changed in place.
        n_items: Number of the former.
        spread: That of the vectors of words.
        starts: What they start from.
    """
    nn.init.normal_(weight, std=spread)
    for own, start in zip((weight[:n_items], weight[n_items:]), starts, strict=True):
        if start is not None:
            own.copy_(spread * start)
    common = torch.empty_like(weight[0]).normal_(std=spread)
    weight[n_items:].mul_((1 - COMMON_VARIANCE) ** 0.5).add_(COMMON_VARIANCE**0.5 * common)


def _spread(weight: Tensor) -> float:
    return 1.0 if weight.is_meta else float(weight.detach().std())
