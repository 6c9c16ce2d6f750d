"""How images and titles become the inputs of a foundation model; light, because worker processes import it."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig

from recbole_perpeft.errors import PerPEFTError

_BUNDLED = Path(__file__).parent / "pretrained"
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
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
# These read the text vector from the last slot, whatever stands there: texts keep one length and have no mask.
FIXED_LENGTH_TEXT = frozenset({"siglip", "siglip2"})


def locate_foundation(name_or_path: str | Path) -> str:
    """Where a foundation model is: the folder of a bundled model, a folder, or a hub id as it is.

    Raises:
        PerPEFTError: The folder does not exist, or lacks its configuration, weights, tokenizer or image processor.
    """
    bundled = _BUNDLED / str(name_or_path)
    folder = bundled if bundled.is_dir() else Path(name_or_path).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name_or_path)):
            return str(name_or_path)
        raise PerPEFTError(f"foundation_model: the folder {name_or_path} does not exist; name a folder or a hub id")
    for what, names in (
        ("configuration", ("config.json",)),
        ("weights", _WEIGHTS),
        ("tokenizer", _TOKENIZERS),
        ("image processor configuration", _PREPROCESSORS),
    ):
        if not any((folder / name).is_file() for name in names):
            raise PerPEFTError(
                f"foundation_model: {folder} has no {what} ({' or '.join(names)}); "
                "write the folder with save_pretrained of the model and of its processor"
            )
    return str(folder)


def cannot_load(what: str, name: str, error: Exception) -> PerPEFTError:
    """The error for a part of a foundation model that transformers could not load."""
    if Path(name).is_dir():
        return PerPEFTError(f"foundation_model: the {what} in {name} cannot be read ({error})")
    return PerPEFTError(
        f"foundation_model: {name!r} is no folder, and its {what} cannot be had from the Hugging Face hub; check the "
        "name and the network, or download the model elsewhere and give the path of its folder"
    )


def load_image_processor(name: str):
    """The model's own image processor on PIL and NumPy: torchvision is no dependency, and pixels stay reproducible."""
    has_backends = importlib.util.find_spec("transformers.image_processing_backends") is not None
    choice = {"backend": "pil"} if has_backends else {"use_fast": False}
    try:
        return AutoImageProcessor.from_pretrained(name, **choice)
    except LOADING_ERRORS as error:
        raise cannot_load("image processor", name, error) from error


def _load_config(name: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise cannot_load("configuration", name, error) from error


class Processor:
    """Turns images and titles into the inputs of a foundation model, as the model's own processor does.

    Pixels stay unsigned bytes: `FoundationModel` rescales and normalises them on its device. An object can be sent to
    worker processes.

    Args:
        image_processor: Image processor of transformers (PIL backend).
        tokenizer: Tokenizer of transformers.
        text_length: Tokens of a text, padding included.
        trim_text: Whether the padding that a whole batch shares may be cut off without changing the text vectors.

    Attributes:
        image_mean, image_std: Three numbers each, for pixels multiplied by `rescale_factor`.
        image_size: Height and width of a processed image.
        description: JSON-able; two processors with equal descriptions give equal outputs.
    """

    def __init__(self, image_processor, tokenizer, text_length: int, trim_text: bool) -> None:
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self.text_length = text_length
        self.trim_text = trim_text
        normalises = image_processor.do_normalize
        self.image_mean = tuple(image_processor.image_mean) if normalises else (0.0, 0.0, 0.0)
        self.image_std = tuple(image_processor.image_std) if normalises else (1.0, 1.0, 1.0)
        self.rescale_factor = float(image_processor.rescale_factor) if image_processor.do_rescale else 1.0
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
        name = locate_foundation(name_or_path)
        config = _load_config(name)
        image_processor = load_image_processor(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except LOADING_ERRORS as error:
            raise cannot_load("tokenizer", name, error) from error
        if tokenizer.pad_token is None:
            raise PerPEFTError(f"foundation_model: the tokenizer of {name} has no pad_token; set it and save it again")
        positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
        longest = int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))
        least = tokenizer.num_special_tokens_to_add() + 1
        length = longest if max_text_length is None else max_text_length
        if not least <= length <= (positions or length):
            raise PerPEFTError(
                f"max_text_length: {length} does not fit {name}; "
                f"choose a number from {least} to {positions or longest}"
            )
        return cls(image_processor, tokenizer, length, config.model_type not in FIXED_LENGTH_TEXT)

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
        image = {key: value for key, value in self._image_processor.to_dict().items() if key != "processor_class"}
        return {
            "image": json.loads(json.dumps(image, default=dict)),
            "tokenizer": self._tokenizer_digest(),
            "text_length": self.text_length,
        }

    def _tokenizer_digest(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = self._tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        # Truncation and padding follow the last call.
        state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
        text = json.dumps([state, self._tokenizer.pad_token_id, self._tokenizer.padding_side], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
