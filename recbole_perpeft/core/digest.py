"""Digests of content. Caches, manifests, checkpoints and keys of runs hold them, so none may ever change."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import open_regular

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Digest = hashlib.blake2b
DIGEST_BYTES = 16
VERSIONED_PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy")
_BLOCK = 2**20  # bytes
_SAMPLES = 1024
# What these do happens before or after a run.
_NOT_IN_A_RUN = ("studies/", "convert/", "cli/", "use/", "data/tables.py", "properties/")


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest(*parts: bytes, size: int = DIGEST_BYTES) -> Digest:
    """BLAKE2b of bytes one after the other, to be read or continued.

    Args:
        parts: what is hashed.
        size: of the digest in bytes.
    """
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(part)
    return state


def value_hash(value: Any) -> str:
    """16 hexadecimal digits for a value that JSON can hold, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())[:16]


def row_digests(rows: Iterable[bytes]) -> np.ndarray:
    """A digest for each of n rows, uint8 [n, 16]."""
    return np.frombuffer(b"".join(digest(row).digest() for row in rows), np.uint8).reshape(-1, DIGEST_BYTES)


def checksum(arrays: Iterable[np.ndarray], value: int = 0) -> int:
    """CRC-32 of the values of arrays one after the other, and after those of which `value` is the checksum."""
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def columns_digest(*columns: Sequence[str]) -> Digest:
    """BLAKE2b of columns of texts, to be read or continued; no two tables share it."""
    state = digest()
    for column in columns:
        texts = [text.encode() for text in column]
        state.update(np.array([len(texts), *map(len, texts)], dtype="<i8").tobytes())
        state.update(b"".join(texts))
    return state


def numbers_hash(table: pd.DataFrame) -> str:
    """32 hexadecimal digits for those columns of a table that hold single numbers, in their order."""
    state = digest()
    for name, column in table.items():
        if column.dtype.kind not in "iuf":  # `select_dtypes` would copy the table
            continue
        state.update(f"{name} {len(column)} ".encode())
        for start in range(0, len(column), _BLOCK):  # a copy of a whole long column would be dear
            state.update(np.ascontiguousarray(column.iloc[start : start + _BLOCK], dtype="<f8").data)
    return state.hexdigest()


def tensor_sample(tensor: Tensor) -> bytes:
    """Up to 2047 values of a tensor and the sum of its bits as integers, which is exact in any order.

    It is the same on every machine and takes a fraction of the time of hashing large weights.

    Args:
        tensor: floats of 2, 4 or 8 bytes on any device; of a `meta` tensor, which has no values, nothing is told.
    """
    import torch  # processes that hash bytes alone do without it

    if tensor.is_meta:
        return b""
    flat = tensor.detach().reshape(-1).contiguous()
    sample = flat[:: max(1, len(flat) // _SAMPLES)].float().cpu().numpy().astype("<f4").tobytes()
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    return sample + str(int(bits.sum(dtype=torch.int64))).encode()


def state_digest(state: Mapping[str, Any], about: str) -> str:
    """32 hexadecimal digits for every value of a state dict, and for a text; on every machine the same.

    Args:
        state: tensors by name; of what is no tensor, its `repr` counts.
        about: what else is to be told.
    """
    import torch

    hashed = digest(about.encode())
    for name, value in state.items():
        is_tensor = isinstance(value, torch.Tensor)
        described = [name, str(value.dtype), list(value.shape)] if is_tensor else [name, repr(value)]
        hashed.update(f"\0{json.dumps(described)}\0".encode())
        if is_tensor:
            hashed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it.

    Raises:
        PerPEFTError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return stream_hash(file)
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror}") from error


def stream_hash(file: BinaryIO) -> str:
    """SHA-256 of what is left of an open file."""
    state = hashlib.sha256()
    _add_file(state, file)
    return state.hexdigest()


def large_file_hash(path: Path) -> str:
    """32 hexadecimal digits for a file, by BLAKE2b, which is faster than SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    state = digest()
    with open_regular(path) as file:
        _add_file(state, file)
    return state.hexdigest()


def _add_file(state: hashlib._Hash | Digest, file: BinaryIO) -> None:
    while block := file.read(_BLOCK):
        state.update(block)


def data_fingerprint(folder: Path, name: str) -> str:
    """Hash of the content of a data set's atomic files, and of paths, sizes and times of its other files.

    Args:
        folder: the data set's folder.
        name: the data set's name.

    Raises:
        PerPEFTError: a file cannot be read.
    """
    state = digest()
    try:
        for path in _files(folder):
            state.update(f"{path.relative_to(folder)}\0".encode())
            if path.parent == folder and path.name.startswith(f"{name}."):
                with open_regular(path) as file:
                    _add_file(state, file)
            else:
                status = path.stat()
                state.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    except OSError as error:
        raise PerPEFTError(f"cannot read the data set: {error}") from error
    return state.hexdigest()


def code_fingerprint(package: Path | None = None) -> str:
    """Hash of this package's code, its bundled models and the versions of what it builds on.

    Comments and layout do not count.

    Args:
        package: the package's folder; by default where this file is.
    """
    package = package or Path(__file__).resolve().parents[1]
    versions = {name: version(name) for name in VERSIONED_PACKAGES}
    state = digest(json.dumps([sys.version_info[:2], versions]).encode())
    for path in _files(package):
        place = path.relative_to(package).as_posix()
        if place.startswith(_NOT_IN_A_RUN) or "__pycache__" in place:
            continue
        content = path.read_bytes()
        state.update(f"{place}\0".encode())
        state.update(ast.dump(ast.parse(content)).encode() if path.suffix == ".py" else content)
    return state.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in an order that does not depend on the file system."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names))
