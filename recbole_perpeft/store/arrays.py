"""Arrays in files: those of others, of which nothing is believed before it is compared with the file, and tensors."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from safetensors.torch import save_file
from torch import Tensor

from recbole_perpeft.core.files import open_regular

MAX_HEADER_BYTES = 10_000
_NUMBERS = "biuf"  # kinds of data types: truth values, whole numbers, floats
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}  # of the length of a header, by version; the third is for names of columns
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    offset: int


def read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no whole array of numbers and nothing else; the message says why, without the file's name.
    """
    with open_regular(path) as file:
        header = _header(file)
        values = np.fromfile(file, header.dtype, math.prod(header.shape))
    return values.reshape(header.shape, order=header.order)


def map_array(path: Path, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """The array of a `.npy` file as a memory map, to be read or copied on write; raises as `read_array`."""
    with open_regular(path) as file:
        shape, order, dtype, offset = _header(file)
        if 0 in shape:  # nothing can be mapped
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype, mode, offset, shape, order)


def _header(file: BinaryIO) -> _Header:
    """What the header says, if the file has as many bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a header was written by Python 2
        try:
            version = npy.read_magic(file)
            n_bytes = _LENGTH_BYTES[version]
            length = int.from_bytes(file.read(n_bytes), "little")
            file.seek(-n_bytes, os.SEEK_CUR)
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length:,} bytes")
            shape, is_fortran, dtype = _READERS[version](file, max_header_size=MAX_HEADER_BYTES)
        except OSError:
            raise
        except Exception as error:  # a parser meets a damaged header with whatever it stumbles over
            raise ValueError(f"no .npy file of numbers, or its header is damaged: {str(error)[:200]}") from error
    if dtype.kind not in _NUMBERS or dtype.itemsize == 0:
        raise ValueError(f"it holds {dtype}, not numbers")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its shape {shape} is impossible")
    found, offset = os.fstat(file.fileno()).st_size, file.tell()
    wanted = offset + math.prod(shape) * dtype.itemsize
    if found != wanted:
        raise ValueError(f"it should have {wanted:,} bytes for {dtype} {shape}, and has {found:,}")
    return _Header(shape, "F" if is_fortran else "C", dtype, offset)


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an array as `.npy`. A full disk is an error, of which `np.save` to a file says nothing.

    Raises:
        OSError: the disk does not take it.
    """
    values = np.ascontiguousarray(values)
    with open(path, "wb") as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(values))
        file.write(values.data)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device.

    Args:
        tensors: by name.
        path: the file, which those may read who may read other files of this process.
        header: texts that the file holds beside them.

    Raises:
        OSError: the disk does not take it.
        SafetensorError: the same, in the words of the library.
    """
    path.touch()
    mode = path.stat().st_mode
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, None if header is None else dict(header))
    path.chmod(mode)  # the library makes a file of its own, for nobody but its owner
