"""The backbone of VIP5: a stock T5 of transformers with adapters, which reads embeddings and decodes trees."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from recbole_perpeft.core.digest import sha256, tensor_sample, value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.nn.adapt.bottleneck import T5AdapterSettings, insert_t5_adapters
from recbole_perpeft.pretrained.frozen import FrozenModel, load_weights
from recbole_perpeft.pretrained.locate import load_part, locate_model

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
            decoder_start_token_id=0,  # type: ignore[call-arg]  # every configuration takes it; its type does not say so
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


TINY = "tiny"
_NORMS = ("layer_norm.weight", "final_layer_norm.weight")
# Of a configuration; weights of the same shapes compute something else under others.
_NOT_IN_WEIGHTS = (
    *("num_heads", "feed_forward_proj", "layer_norm_epsilon", "relative_attention_max_distance"),
    *("decoder_start_token_id", "pad_token_id"),
)


@dataclass(frozen=True)
class BackboneSettings(Settings):
    """Which T5, and what of it is trained."""

    backbone: str = setting(
        "google-t5/t5-small", "A T5: a hub id, a folder, or tiny for a small one with random weights."
    )
    freeze_backbone: bool = setting(True, "Whether only adapters, norms and what is new are trained.")
    train_norms: bool = setting(True, "Whether the norms of a frozen backbone are trained.")

    def check(self) -> None:
        """Random weights are trained."""
        if self.backbone == TINY and self.freeze_backbone:
            raise PerPEFTError("backbone: tiny has random weights, useless when frozen; set freeze_backbone: False")


class T5Backbone(FrozenModel):
    """T5 with adapters.

    Args:
        model: Model of transformers; adapters are put into it.
        tokenizer: Its tokenizer.
        adapters: Where adapters are.
        freeze: Whether all but adapters is frozen.
        train_norms: Whether norms are trained nevertheless.

    Attributes:
        tokenizer: Its tokenizer.
        width: d.
        n_words: Rows of its table of words.
        fingerprint: Short hash of its frozen weights and of its vocabulary, a dot, and one of its configuration.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        adapters: T5AdapterSettings,
        freeze: bool = True,
        train_norms: bool = True,
    ) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        self.width = model.config.d_model
        self.n_words = model.get_input_embeddings().num_embeddings
        model.requires_grad_(not freeze)
        for name, parameter in model.named_parameters():
            if freeze and train_norms and name.endswith(_NORMS):
                parameter.requires_grad_(True)
        insert_t5_adapters(model, adapters)
        tensors = model.state_dict(keep_vars=True)
        self.checkpointed = frozenset(f"model.{name}" for name, tensor in tensors.items() if tensor.requires_grad)
        frozen = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
        self.fingerprint = _fingerprint(frozen, tokenizer, model.config)

    @classmethod
    def load(
        cls,
        settings: BackboneSettings,
        adapters: T5AdapterSettings,
        tiny: TinyBackboneSettings,
        texts: Iterable[str],
    ) -> "T5Backbone":
        """Loads a folder or hub id, or makes the backbone `tiny`.

        Args:
            settings: Which T5, and what of it is trained.
            adapters: Where adapters are.
            tiny: Sizes of the backbone `tiny`.
            texts: Whose words the tokenizer of `tiny` knows.

        Raises:
            PerPEFTError: The folder is incomplete or no T5, or the hub cannot be reached.
        """
        is_tiny = settings.backbone == TINY
        model, tokenizer = tiny_backbone(texts, tiny) if is_tiny else _pretrained(settings.backbone)
        return cls(model, tokenizer, adapters, settings.freeze_backbone, settings.train_norms)

    def word_vectors(self, words: Tensor) -> Tensor:
        """Rows of the table of words, [..., d]."""
        return self.model.get_input_embeddings()(words)

    @property
    def start_word(self) -> int:
        """What the decoder reads first; the pad unless the configuration says otherwise."""
        start = getattr(self.model.config, "decoder_start_token_id", None)
        return self.model.config.pad_token_id if start is None else start

    @property
    def output_weight(self) -> Tensor:
        """Output vectors of words, [n_words, d]."""
        return self.model.lm_head.weight

    @property
    def output_scale(self) -> float:
        """What hidden states are multiplied by before the output vectors: 1 / sqrt(d) if these are the input's."""
        return self.width**-0.5 if _scales_outputs(self.model.config) else 1.0

    def encode(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Encoder.

        Args:
            inputs: Embeddings [B, S, d].
            mask: bool [B, S], False at pads.

        Returns:
            [B, S, d]
        """
        return self.model.encoder(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state

    def decode(self, inputs: Tensor, states: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """Decoder.

        Args:
            inputs: Embeddings [B, T, d], the start first.
            states: Of the encoder, [B, S, d].
            mask: Of `states`, bool [B, S].
            bias: Added to the weights of self-attention in place of the causal mask, as `tree_bias` gives it.

        Returns:
            Hidden states [B, T, d].
        """
        return self.model.decoder(
            inputs_embeds=inputs,
            attention_mask=bias,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state

    def tree_bias(self, ancestors: Tensor, depth: Tensor) -> Tensor:
        """Lets the decoder read the nodes of a tree in one pass, every node as if its path were a sequence.

        Nodes attend to their ancestors and themselves. The decoder adds the bias of the positions at which nodes
        stand; it is replaced by the bias of their depths.

        Args:
            ancestors: bool [n, P, P]; whether the second node is an ancestor of the first, or itself.
            depth: int64 [n, P]; 0 for roots.

        Returns:
            [n, heads, P, P] for `decode`, with n = 1 for the same tree in all rows.
        """
        attention = self.model.decoder.block[0].layer[0].SelfAttention
        by_position = attention.compute_bias(depth.shape[1], depth.shape[1])  # (1, heads, P, P)
        distance = (depth.unsqueeze(2) - depth.unsqueeze(1)).clamp(min=0)
        by_depth = by_position[0, :, :, 0][:, distance].transpose(0, 1)  # (n, heads, P, P)
        hidden = torch.finfo(by_depth.dtype).min / 2
        return (by_depth - by_position).masked_fill(~ancestors.unsqueeze(1), hidden)


def _scales_outputs(config: T5Config) -> bool:
    """Whether hidden states of the decoder are scaled; transformers 4 tells it by whether words are tied."""
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))


def _pretrained(name_or_path: str) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    name = locate_model(name_or_path, "backbone", ("text",))
    kind = load_part("configuration", AutoConfig, name, "backbone").model_type
    if kind != T5Config.model_type:
        raise PerPEFTError(f"backbone: {name} is of the type {kind!r}, not t5; name a T5")
    tokenizer = load_part("tokenizer", AutoTokenizer, name, "backbone")
    model, report = load_weights(T5ForConditionalGeneration, name, "backbone", ignore_mismatched_sizes=True)
    _check_parts(name, model, report, tokenizer)
    return model.float(), tokenizer


def _check_parts(
    name: str, model: T5ForConditionalGeneration, report: dict, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuses weights, configuration and tokenizer that are not of one model."""
    if report["mismatched_keys"]:
        raise PerPEFTError(
            f"backbone: {len(report['mismatched_keys'])} tensors in {name} have other sizes than its configuration "
            "says; take both from the same model"
        )
    n_words = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > n_words or tokenizer.eos_token_id is None:
        raise PerPEFTError(
            f"backbone: the tokenizer in {name} ({len(tokenizer)} words, end mark {tokenizer.eos_token}) is not that "
            f"of the model ({n_words} words); take the model's own"
        )


def _fingerprint(tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, config: T5Config) -> str:
    """Hash of names, samples and exact sums of the bits of tensors and of the words; then of what no weight tells."""
    parts = [repr(sorted(tokenizer.get_vocab().items())).encode()]
    for name, tensor in sorted(tensors.items()):
        parts += [repr((name, tuple(tensor.shape))).encode(), tensor_sample(tensor.float())]
    configuration = value_hash([_scales_outputs(config), *(getattr(config, name, None) for name in _NOT_IN_WEIGHTS)])
    return f"{sha256(b''.join(parts))[:16]}.{configuration[:8]}"
