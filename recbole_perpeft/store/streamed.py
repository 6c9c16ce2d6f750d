"""Arrays that are computed once in chunks, kept in a `.npy` file, and mapped into memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER


class StreamedArray:
    """A float32 array in a file of its own, which appears whole or not at all.

    Args:
        path: The file; its name identifies what the array is made of.
        shape: Of the array, rows first.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape

    def map(self) -> np.ndarray | None:
        """The array, mapped; None where there is no whole file of that shape."""
        try:
            # Copy on write: a file that several processes map is never changed.
            values = np.load(self.path, mmap_mode="c", allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            LOGGER.warning(f"{self.path}: {error}. It is computed again.")
            return None
        return values if values.shape == self.shape and values.dtype == np.float32 else None

    @contextmanager
    def _draft(self) -> Iterator[BinaryIO]:
        # Not `files.written_whole`: several processes may want this file at once, each writes a draft of its own.
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            # Plain writing: through a memory map, a full disk would end the process by a signal.
            with draft.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                )
                yield file
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)


def write_arrays(arrays: dict[str, StreamedArray], chunks: Iterator[dict[str, Tensor]]) -> None:
    """Write several arrays at once.

    Args:
        arrays: Where each goes.
        chunks: The next rows of each, in their order.

    Raises:
        PerPEFTError: The disk does not take them.
    """
    folder = next(iter(arrays.values())).path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = {name: stack.enter_context(array._draft()) for name, array in arrays.items()}
            for chunk in chunks:
                for name, file in files.items():
                    file.write(chunk[name].cpu().contiguous().numpy().astype("<f4", copy=False).data)
    except OSError as error:
        megabytes = sum(4 * int(np.prod(array.shape, dtype=np.int64)) for array in arrays.values()) / 2**20
        raise PerPEFTError(
            f"{folder}: cannot be written ({error.strerror or error}); {megabytes:,.0f} MiB are needed, free space"
        ) from error


def mapped_or_written(
    arrays: dict[str, StreamedArray], compute: Callable[[], Iterator[dict[str, Tensor]]]
) -> dict[str, Tensor]:
    """All of the arrays, mapped; they are written first where one is missing.

    Args:
        arrays: Where each is.
        compute: Gives the chunks that `write_arrays` takes.

    Raises:
        PerPEFTError: The disk does not take them, or another process changes the folder.
    """
    found = _mapped(arrays)
    if found is None:
        write_arrays(arrays, compute())
        found = _mapped(arrays)
    if found is None:
        folder = next(iter(arrays.values())).path.parent
        raise PerPEFTError(f"{folder}: was changed by another process while it was read; run again")
    return found


def _mapped(arrays: dict[str, StreamedArray]) -> dict[str, Tensor] | None:
    found = {name: array.map() for name, array in arrays.items()}
    if any(values is None for values in found.values()):
        return None
    return {name: torch.from_numpy(values) for name, values in found.items()}
