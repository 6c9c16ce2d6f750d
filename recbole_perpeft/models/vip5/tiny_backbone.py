"""A small T5 with random weights and a tokenizer of its own, for data sets that come without pretrained weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting

WORD_MARK = "▁"  # how SentencePiece marks the first piece of a word
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
# Standard deviation of word vectors. T5 starts with 1, so that random logits have first to be unlearnt; logits are
# products with the same vectors, so that much smaller ones have to grow for long before answers are certain.
WORD_SPREAD = 0.3


@dataclass(frozen=True)
class TinyBackboneSettings(Settings):
    """Sizes of the backbone `tiny`."""

    tiny_width: int = setting(64, "Width of the backbone tiny.", least=1)
    tiny_inner_width: int = setting(256, "Inner width of its feed-forward parts.", least=1)
    tiny_heads: int = setting(4, "Its attention heads.", least=1)
    tiny_layers: int = setting(2, "Its blocks, in the encoder and in the decoder.", least=1)
    tiny_dropout: float = setting(0.1, "Its dropout.", least=0, below=1)

    def check(self) -> None:
        """A head has a width."""
        if self.tiny_heads > self.tiny_width:
            raise PerPEFTError(f"tiny_heads is {self.tiny_heads}: it must be at most tiny_width, {self.tiny_width}")

    def config(self, n_words: int) -> T5Config:
        """Configuration of transformers for a vocabulary of this size."""
        return T5Config(
            vocab_size=n_words,
            d_model=self.tiny_width,
            d_ff=self.tiny_inner_width,
            d_kv=self.tiny_width // self.tiny_heads,
            num_heads=self.tiny_heads,
            num_layers=self.tiny_layers,
            dropout_rate=self.tiny_dropout,
            decoder_start_token_id=0,
        )


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary are the words of some texts, and digits.

    Words are lower case, digits and punctuation stand alone, and pieces mark the start of a word as those of T5's own
    tokenizer do. Pad, end and unknown word have T5's ids 0, 1 and 2.

    Args:
        texts: In any order; the same words make the same tokenizer.
    """
    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=WORD_MARK, prepend_scheme="always"),
            # Digits and punctuation stand alone, with the mark if they begin a word.
            pre_tokenizers.Split(Regex(rf"{WORD_MARK}?(\d|[^\w{WORD_MARK}])"), "isolated"),
        ]
    )
    pieces = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    pieces |= {mark + digit for mark in ("", WORD_MARK) for digit in "0123456789"}
    vocabulary = {piece: index for index, piece in enumerate([PAD, EOS, UNKNOWN, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace(replacement=WORD_MARK, prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def tiny_backbone(
    texts: Iterable[str], settings: TinyBackboneSettings
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """A T5 with random weights from PyTorch's generator, and a tokenizer that knows the words of some texts."""
    tokenizer = word_tokenizer(texts)
    model = T5ForConditionalGeneration(settings.config(len(tokenizer)))
    with torch.no_grad():
        model.shared.weight.mul_(WORD_SPREAD)
    return model, tokenizer
