"""Hidden states of some items: what one process computes, here or on another machine."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor

from recbole_perpeft.core.digest import row_digests
from recbole_perpeft.core.errors import PerPEFTError, one_line
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.content import IMAGE
from recbole_perpeft.data.photos.images import process_images
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.store.by_length import chunks_by_length
from recbole_perpeft.store.recipe import STAMP, Chunk, ComputedChunk

FIRST_STATE, STATES, FINAL, DIGEST = "state_0", "states", "final", "content_digest"


@dataclass(frozen=True)
class HiddenStateSettings(Settings):
    """Which hidden states are kept, and how they are computed."""

    encoder: str = setting(help="Bundled model, minilm, folder or hub id.")
    layers: tuple[int, ...] = setting(
        help="States to keep, ascending: 0 is the output of the embedding, b that of block b; none: final vectors."
    )
    pooling: str | None = setting(None, "cls | mean | mean_all | eos, see Backbone.pooled; ~ for the usual one.")
    max_length: int = setting(30, "Tokens of a text, special tokens included.", least=1)
    dtype: Literal["float16", "float32"] = setting("float16", "How states are stored.")
    batch_size: int = setting(64, "Items that pass through the encoder at once.", least=1)
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1 ...")
    quantization: str | None = setting(None, "8bit or 4bit, see Backbone.from_pretrained.")
    engine: Literal["local", "ray"] = setting("local", "local, in this process, or ray, as Ray Data batches.")
    n_workers: int | None = setting(None, "Workers of ray; ~ for one a GPU, or one a core.", least=1)

    def check(self) -> None:
        """Every state is kept once."""
        if list(self.layers) != sorted(set(self.layers)):
            raise PerPEFTError(f"layers is {list(self.layers)}: they must ascend, each state once")


@dataclass(frozen=True)
class _Inputs:
    """A chunk as the encoder takes it."""

    chunk: Chunk
    arrays: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    damaged: dict[str, str] = field(default_factory=dict)


class StateEncoder:
    """Turns chunks of items into rows of a cache. The rows of a chunk depend on nothing but that chunk.

    Args:
        kind: `text` or `image`.
        settings: How they are encoded.
    """

    def __init__(self, kind: str, settings: HiddenStateSettings):
        self._settings = settings
        self._processor = load_processor(kind, settings)
        self._device = _device(settings.device)
        self._backbone = Backbone.from_pretrained(settings.encoder, kind, settings.quantization)
        if settings.quantization is None:
            self._backbone.to(self._device)
        self._dtype = getattr(torch, settings.dtype)
        self._pooling = self._backbone.check_pooling(settings.pooling)

    def encode(self, chunks: Iterable[Chunk]) -> Iterator[ComputedChunk]:
        """Rows of every chunk. While one is computed, the next is tokenised or decoded.

        Raises:
            PerPEFTError: A state is not finite.
        """
        with ThreadPoolExecutor(1) as ahead:
            inputs = None
            for chunk in chunks:
                following = ahead.submit(self._prepare, chunk)
                if inputs is not None:
                    yield self._compute(inputs)
                inputs = following.result()
            if inputs is not None:
                yield self._compute(inputs)

    def _prepare(self, chunk: Chunk) -> _Inputs:
        size = self._processor.image_size
        return self._prepare_texts(chunk) if size is None else self._prepare_images(chunk, size)

    def _prepare_texts(self, chunk: Chunk) -> _Inputs:
        ids, mask = self._processor.text(chunk.texts)
        mask[~mask.any(axis=1), 0] = 1  # an empty text of a tokenizer without special tokens
        return _Inputs(chunk, {"input_ids": ids, "attention_mask": mask}, {DIGEST: text_digests(chunk.texts)})

    def _prepare_images(self, chunk: Chunk, size: tuple[int, int]) -> _Inputs:
        with ThreadPoolExecutor(cpu_count()) as decoders:
            images = process_images(chunk.image_paths, self._processor.image, size, decoders.map, chunk.limits)
        damaged = {str(chunk.start + place): why for place, why in images.damaged.items()}
        return _Inputs(chunk, {"pixel_values": images.pixels}, {DIGEST: images.digests, STAMP: images.stamps}, damaged)

    def _pooled_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """States of a batch; models check only as they work that processor and weights belong together."""
        try:
            return self._backbone.pooled_states(self._settings.layers, self._pooling, **batch)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise PerPEFTError(
                f"{self._settings.encoder}: the model cannot read what its own processor makes ({one_line(error)}); "
                "get the folder again, or write both with save_pretrained"
            ) from error

    @torch.inference_mode()
    def _compute(self, inputs: _Inputs) -> ComputedChunk:
        n, layers, width = len(inputs.chunk.tokens), self._settings.layers, self._backbone.width
        states = torch.empty(n, len(layers), width, dtype=self._dtype)
        final = torch.empty(n, width, dtype=self._dtype)
        for places in self._batches(inputs):
            batch = self._batch(inputs.arrays, places)
            exact = self._pooled_states(batch)
            for stored, values in zip((states, final), exact, strict=True):
                stored[places] = self._checked(values.cpu(), inputs.chunk, places)
        rows = dict(inputs.rows) | {FINAL: final.numpy()}
        if 0 in layers:
            rows[FIRST_STATE] = states[:, 0].contiguous().numpy()
        if others := [place for place, layer in enumerate(layers) if layer]:
            rows[STATES] = states[:, others[0] :].contiguous().numpy()
        return ComputedChunk(inputs.chunk.index, inputs.chunk.start, rows, inputs.damaged)

    def _batches(self, inputs: _Inputs) -> tuple[Tensor, ...]:
        """Items of every batch; texts of similar length go together, so that little padding is computed."""
        lengths = None
        if "attention_mask" in inputs.arrays and self._may_trim:
            lengths = torch.from_numpy(inputs.arrays["attention_mask"].sum(axis=1, dtype=np.int64))
        return chunks_by_length(lengths, len(inputs.chunk.tokens), self._settings.batch_size)

    @property
    def _may_trim(self) -> bool:
        return self._processor.trim_text and self._pooling != "mean_all"

    def _batch(self, arrays: dict[str, np.ndarray], places: Tensor) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(values)[places] for name, values in arrays.items()}
        if "attention_mask" in batch:
            length = int(batch["attention_mask"].sum(dim=1).max()) if self._may_trim else None
            batch = {name: values[:, :length].long() for name, values in batch.items()}
        return {name: values.to(self._device) for name, values in batch.items()}

    def _checked(self, values: Tensor, chunk: Chunk, places: Tensor) -> Tensor:
        """As they are stored."""
        stored = values.to(self._dtype)
        if stored.isfinite().all():
            return stored
        finite, fits = (part.flatten(1).isfinite().all(dim=1) for part in (values, stored))
        name = chunk.tokens[int(places[int((~fits).to(torch.uint8).argmax())])]
        if finite.all():
            raise PerPEFTError(
                f"item {name!r}: a hidden state of {self._settings.encoder} is up to {values.abs().max():.3g}, "
                f"too large for {self._settings.dtype}; store it with cache_dtype float32."
            )
        raise PerPEFTError(
            f"item {name!r}: a hidden state of {self._settings.encoder} is not a finite number; "
            f"look at the content of this item and at the weights of the encoder."
        )


def kind_of(content_field: str) -> str:
    """The kind of encoder that a field of items needs."""
    return "image" if content_field == IMAGE else "text"


def load_processor(kind: str, settings: HiddenStateSettings) -> Processor:
    """The tokenizer or image processor of an encoder."""
    if kind == "image":
        return Processor.from_encoders(image_encoder=settings.encoder)
    return Processor.from_encoders(text_encoder=settings.encoder, max_text_length=settings.max_length)


def text_digests(texts: list[str]) -> np.ndarray:
    """Digest of every text, uint8 [n, 16]."""
    return row_digests(text.encode() for text in texts)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PerPEFTError(f"device: {name!r} is no device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PerPEFTError(f"device: there is no GPU for {name!r}; use auto or cpu")
    return device
