"""Parts of a trained model as files that no code of this package is needed to read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.store.arrays import save_tensors

ONNX_PACKAGES = ("onnx", "onnxscript")  # what PyTorch's exporter imports
PT2_FILE, ONNX_FILE = "user_encoder.pt2", "user_encoder.onnx"


def can_write_onnx() -> bool:
    """Whether the packages are there."""
    return all(find_spec(name) for name in ONNX_PACKAGES)


def check_onnx() -> None:
    """Refuse to write ONNX without its packages.

    Raises:
        PerPEFTError: one is missing.
    """
    if not can_write_onnx():
        raise PerPEFTError(
            f"ONNX needs the packages {' and '.join(ONNX_PACKAGES)}: pip install 'recbole-perpeft[export]', or leave "
            "out --onnx"
        )


class UserVectors(nn.Module):
    """A user encoder as a function of item vectors and of the rows that they were taken from.

    Args:
        encoder: makes vectors at every slot.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, item_vectors: Tensor, item_rows: Tensor) -> Tensor:
        """Vectors of users.

        Args:
            item_vectors: of the newest items, the last one at the end and pads (row 0) in front, [B, L, d].
            item_rows: their rows, int64 [B, L].

        Returns:
            [B, d]
        """
        return self.encoder.newest(item_vectors, item_rows)


def names_of_groups(model: Any) -> Iterator[tuple[str, int | None]]:
    """Name and number of the global module and of each group."""
    yield "global", None
    yield from ((f"group-{group}", group) for group in range(model.n_groups))


@torch.no_grad()
def write_items(folder: Path, model: Any, dataset: Any) -> None:
    """Ids, id vectors, projectors, and item vectors of each group.

    Args:
        folder: gets `items.parquet`, `id_vectors.safetensors`, `projectors.safetensors` and `vectors/`.
        model: a `PerPEFT` or `GlobalPEFT`.
        dataset: its data set.
    """
    tokens = dataset.field2id_token[dataset.iid_field][1:].astype(object)
    items = pd.DataFrame({"row": np.arange(1, len(tokens) + 1), "item_id": tokens})
    items.to_parquet(folder / "items.parquet", index=False)
    encoder = model.item_encoder
    if encoder.id_embedding is not None:
        save_tensors({"id_vectors": encoder.id_embedding.weight}, folder / "id_vectors.safetensors")
    projectors = {
        f"{name}.{key}": tensor
        for name, group in names_of_groups(model)
        for key, tensor in encoder.projectors.of(group).state_dict().items()
    }
    save_tensors(projectors, folder / "projectors.safetensors")
    (folder / "vectors").mkdir()
    for name, group in names_of_groups(model):  # one at a time: a catalogue may be large
        save_tensors({"item_vectors": model.catalogue(group, kept=False)}, folder / "vectors" / f"{name}.safetensors")


def write_user_encoder(folder: Path, model: Any, onnx: bool) -> None:
    """The user encoder for PyTorch alone (`torch.export`), and for ONNX; both take any number of users.

    Args:
        folder: gets `user_encoder.pt2`, and `user_encoder.onnx`.
        model: a `PerPEFT` or `GlobalPEFT`.
        onnx: whether ONNX is written too.

    Raises:
        PerPEFTError: the user encoder has parts that cannot be exported.
    """
    encoder = UserVectors(model.user_encoder).cpu().eval()
    length, width = model.max_seq_length, model.item_encoder.hidden_size
    example = (torch.randn(2, length, width), torch.arange(2 * length).view(2, length))
    sizes = ({0: torch.export.Dim.DYNAMIC},) * 2
    try:
        with torch.no_grad(), _quiet():
            torch.export.save(torch.export.export(encoder, example, dynamic_shapes=sizes), folder / PT2_FILE)
            if onnx:
                torch.onnx.export(
                    encoder,
                    example,
                    folder / ONNX_FILE,
                    input_names=["item_vectors", "item_rows"],
                    output_names=["user_vectors"],
                    dynamic_shapes=sizes,
                    dynamo=True,
                    external_data=False,  # one file: an encoder of users is far below the 2 GB of one
                    verbose=False,
                )
    except (RuntimeError, TypeError, NotImplementedError, torch._dynamo.exc.TorchDynamoException) as error:
        raise PerPEFTError(
            f"the user encoder {type(model.user_encoder).__name__} cannot be exported: {str(error).splitlines()[0]}"
        ) from error
    finally:
        encoder.to(model.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporters say much about their own inside: in warnings, and in logs of several packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
