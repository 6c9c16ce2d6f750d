"""Digests: short names of content. Caches, manifests and keys of runs hold them, so none may ever change."""

from __future__ import annotations

import hashlib
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError

_BLOCK = 2**20  # bytes


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it.

    Raises:
        PerPEFTError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror}") from error
