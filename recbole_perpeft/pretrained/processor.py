"""How images and titles become the inputs of a pretrained model."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.families import has_fixed_length
from recbole_perpeft.pretrained.locate import (
    load_part,
    loading,
    locate_encoder,
    locate_foundation,
    timm_configuration,
)
from recbole_perpeft.pretrained.timm_images import TimmImageProcessor


class Pixels(NamedTuple):
    """How bytes of an image become what an encoder reads: (byte * factor - mean) / std, a number a colour channel."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    factor: float = 1 / 255


CENTRED = Pixels()  # to -1 .. 1


def pixels_of(image_processor: Any) -> Pixels:
    """What an image processor of transformers does with the bytes of a resized image.

    Raises:
        ValueError: Its numbers are not of three colours, or no image could be told from another.
    """
    images = image_processor
    mean, std = (images.image_mean, images.image_std) if images.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if images.do_rescale and getattr(images, "rescale_offset", False):  # EfficientNet, ALIGN: to -1 .. 1 first
        mean = [value + 1.0 for value in mean]
    if getattr(images, "include_top", False):  # EfficientNet: divided by the deviations once more
        std = [value * again for value, again in zip(std, images.image_std, strict=True)]
    pixels = Pixels(tuple(mean), tuple(std), float(images.rescale_factor) if images.do_rescale else 1.0)
    numbers = np.array([pixels.mean, pixels.std], dtype=np.float64)
    if numbers.shape != (2, 3) or not (np.isfinite(numbers).all() and numbers[1].min() > 0 < pixels.factor < np.inf):
        raise ValueError(f"images are normalised by the impossible numbers {pixels}")
    return pixels


def load_image_processor(name: str, key: str = "foundation_model") -> Any:
    """The model's own image processor on PIL and NumPy: torchvision is no dependency, and pixels stay reproducible."""
    images = timm_configuration(name, key)
    if images is not None:
        with loading("configuration", name, key):
            return TimmImageProcessor(images, key)
    has_backends = importlib.util.find_spec("transformers.image_processing_backends") is not None
    choice: dict[str, Any] = {"backend": "pil"} if has_backends else {"use_fast": False}
    return load_part("image processor", AutoImageProcessor, name, key, **choice)


class Processor:
    """Turns images and titles into the inputs of a foundation model, as the model's own processor does.

    Pixels stay unsigned bytes: the model rescales and normalises them on its device. An object can be sent to worker
    processes.

    Args:
        image_processor: Image processor of transformers (PIL backend); None where items are texts alone.
        tokenizer: Tokenizer of transformers; None where items are images alone.
        text_length: Tokens of a text, padding included; None without a tokenizer.
        trim_text: Whether the padding that a whole batch shares may be cut off without changing the text vectors.
        n_words: Words that the text encoder knows; None where nobody says.
        pads_right: Whether padding stands at the right, whatever side the tokenizer prefers.

    Attributes:
        image_mean, image_std: Three numbers each, for pixels multiplied by `rescale_factor`.
        image_size: Height and width of a processed image; None without an image processor.
        description: JSON-able; two processors with equal descriptions give equal outputs.
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        text_length: int | None,
        trim_text: bool,
        n_words: int | None = None,
        pads_right: bool = True,
    ) -> None:
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self.text_length = text_length
        self.trim_text = trim_text
        self._n_words = n_words
        self._moves_text = pads_right and getattr(tokenizer, "padding_side", "right") == "left"
        self.image_size: tuple[int, int] | None = None
        if image_processor is not None:
            self._describe_images()

    def _describe_images(self) -> None:
        self.image_mean, self.image_std, self.rescale_factor = pixels_of(self._image_processor)
        wide, tall = (self.image(Image.new("RGB", size)).shape for size in ((64, 16), (16, 64)))
        if wide != tall or len(wide) != 3:
            raise PerPEFTError(
                f"foundation_model: its image processor makes images of different shapes ({wide} and {tall}); "
                "choose a model with one fixed image size"
            )
        self.image_size = wide[1:]

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, max_text_length: int | None = None) -> "Processor":
        """Loads the processor of a foundation model.

        Args:
            name_or_path: Bundled model, folder or hub id.
            max_text_length: Tokens of a text, special tokens included; None for the most that the model takes.

        Raises:
            PerPEFTError: The folder is incomplete, the hub cannot be reached, or the text length does not fit.
        """
        name, key = locate_foundation(name_or_path), "foundation_model"
        config = load_part("configuration", AutoConfig, name, key)
        image_processor = load_image_processor(name)
        tokenizer = load_part("tokenizer", AutoTokenizer, name, key)
        if tokenizer.pad_token is None:
            raise PerPEFTError(f"foundation_model: the tokenizer of {name} has no pad_token; set it and save it again")
        with loading("tokenizer", name, key):
            length = _text_length(tokenizer, config, max_text_length, name)
        with loading("image processor", name, key):
            is_free = not has_fixed_length(config.model_type)
            processor = cls(image_processor, tokenizer, length, is_free, _n_words(config), is_free)
        with loading("tokenizer", name, key):
            processor.text([""])
        return processor

    @classmethod
    def from_encoders(
        cls,
        text_encoder: str | Path | None = None,
        image_encoder: str | Path | None = None,
        max_text_length: int | None = 30,
        trim_text: bool = True,
    ) -> "Processor":
        """Loads the tokenizer of one encoder and the image processor of another, or one of the two.

        A tokenizer without a pad token, as those of many language models, pads with its end token: padding is masked.

        Args:
            text_encoder, image_encoder: As in `locate_encoder`; None leaves texts or images out.
            max_text_length: As in `from_pretrained`; 30 is IISAN's (arXiv 2411.02992).
            trim_text: Whether shared padding is cut off where the encoder allows it.

        Raises:
            PerPEFTError: Neither is given, a folder is incomplete, the hub cannot be reached, or the text length does
                not fit.
        """
        if text_encoder is None and image_encoder is None:
            raise PerPEFTError("text_encoder, image_encoder: both are empty; name at least one")
        image_processor = tokenizer = length = n_words = None
        images, texts, is_free = "", "", True
        if image_encoder is not None:
            images = locate_encoder(image_encoder, "image")
            image_processor = load_image_processor(images, "image_encoder")
        if text_encoder is not None:
            texts, key = locate_encoder(text_encoder, "text"), "text_encoder"
            config = load_part("configuration", AutoConfig, texts, key)
            tokenizer = load_part("tokenizer", AutoTokenizer, texts, key)
            with loading("tokenizer", texts, key):
                if tokenizer.pad_token is None:
                    tokenizer.pad_token = tokenizer.eos_token
                length = _text_length(tokenizer, config, max_text_length, texts)
                is_free = not has_fixed_length(config.model_type)
                n_words = _n_words(config)
        with loading("image processor", images, "image_encoder"):
            trims = trim_text and is_free and tokenizer is not None
            processor = cls(image_processor, tokenizer, length, trims, n_words, is_free)
        if tokenizer is not None:
            with loading("tokenizer", texts, "text_encoder"):
                processor.text([""])
        return processor

    def image(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops an RGB image.

        Returns:
            uint8 [3, H, W]
        """
        choice = {"do_rescale": False, "do_normalize": False}
        if hasattr(self._image_processor, "include_top"):
            choice["include_top"] = False
        pixels = self._image_processor(image, **choice, return_tensors="np")
        return np.asarray(pixels["pixel_values"][0], dtype=np.uint8)

    def text(self, titles: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises titles; longer ones are cut, shorter ones padded.

        Returns:
            Token ids, int32 [n, text_length], and attention mask, uint8 [n, text_length].

        Raises:
            PerPEFTError: A token is none of the encoder's words.
        """
        encoded = self._tokenizer(
            list(titles),
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_attention_mask=True,
            return_tensors="np",
        )
        ids = encoded["input_ids"].astype(np.int32)
        if self._n_words is not None and ids.size and not 0 <= ids.min() <= ids.max() < self._n_words:
            raise PerPEFTError(
                f"{self._tokenizer.name_or_path}: the tokenizer makes the token {ids.max()}, and the encoder has "
                f"{self._n_words} words; take tokenizer and weights of one model"
            )
        mask = encoded["attention_mask"].astype(np.uint8)
        if not self._moves_text:
            return ids, mask
        order = _padding_last(mask)
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1)

    def offsets(self, title: str) -> np.ndarray:
        """Where in a title each of its tokens begins and ends, int64 [text_length, 2]; equal for special tokens.

        Raises:
            PerPEFTError: The tokenizer does not tell.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            raise PerPEFTError(f"{type(self._tokenizer).__name__} does not tell where its tokens are in a text")
        encoded = self._tokenizer(
            title,
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_attention_mask=True,
            return_offsets_mapping=True,
        )
        offsets, mask = (np.asarray(encoded[name], dtype=np.int64) for name in ("offset_mapping", "attention_mask"))
        return offsets[_padding_last(mask)] if self._moves_text else offsets

    @property
    def description(self) -> dict:
        """What identifies the processor's outputs, wherever its files lie."""
        description: dict = {}
        if self._image_processor is not None:
            image = {key: value for key, value in self._image_processor.to_dict().items() if key != "processor_class"}
            description["image"] = json.loads(json.dumps(image, default=dict))
            if image.get("rescale_offset") or image.get("include_top"):  # version 0.1.0 left them out
                description["image"]["read_as"] = "rescaled with its offset, divided by deviations as often as said"
        if self._tokenizer is not None:
            description |= {"tokenizer": self._tokenizer_digest(), "text_length": self.text_length}
        if self._moves_text:
            description["padding"] = "moved to the right"
        return description

    def _tokenizer_digest(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = self._tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        # Truncation and padding follow the last call.
        state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
        return value_hash([state, self._tokenizer.pad_token_id, self._tokenizer.padding_side])


def _padding_last(mask: np.ndarray) -> np.ndarray:
    """Places of the tokens of texts in their order, padding behind them, [..., T]."""
    return np.argsort(mask == 0, axis=-1, kind="stable")


def _n_words(config: PretrainedConfig) -> int | None:
    """Words that a text encoder knows; None if its configuration does not say."""
    return getattr(getattr(config, "text_config", config), "vocab_size", None)


def _text_length(tokenizer, config: PretrainedConfig, max_text_length: int | None, name: str) -> int:
    """Tokens of a text; where its vector is read from the last slot, as many as the model was trained with.

    Raises:
        PerPEFTError: `max_text_length` is more than the model takes, or leaves no room beside special tokens.
    """
    positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    longest = int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))
    least = tokenizer.num_special_tokens_to_add() + 1
    length = longest if max_text_length is None or has_fixed_length(config.model_type) else max_text_length
    if not least <= length <= (positions or length):
        raise PerPEFTError(
            f"max_text_length: {length} does not fit {name}; choose a number from {least} to {positions or longest}"
        )
    return length
