"""What a run depends on besides its settings: the files of its data set, and the code."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.training.checkpoint import VERSIONED_PACKAGES

_DIGEST_SIZE = 16
_BLOCK = 1 << 20  # bytes
# What these do happens before or after a run.
_NOT_IN_A_RUN = ("studies/", "convert/", "cli/", "runs/recommend.py", "runs/explain.py", "properties/")
# Where things are and what is shown changes no number.
_WITHOUT_EFFECT = frozenset(
    {"data_path", "cache_folder", "runs_folder", "show_progress", "state", "log_wandb", "wandb_project"}
    | {"gpu_id", "use_gpu"}
)


def run_key(settings: Mapping[str, Any], device: str, data: str, code: str) -> str:
    """Identifies the numbers of a run.

    Args:
        settings: `Config.to_dict()`.
        device: kind of device, `cpu` or `cuda`.
        data: `data_fingerprint` of the data set.
        code: `code_fingerprint()`.

    Returns:
        16 hexadecimal digits.
    """
    relevant = {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}
    text = json.dumps([relevant, device, data, code], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def data_fingerprint(folder: Path, name: str) -> str:
    """Hash of the content of a data set's atomic files, and of paths, sizes and times of its other files.

    Args:
        folder: the data set's folder.
        name: the data set's name.

    Raises:
        PerPEFTError: a file cannot be read.
    """
    state = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    try:
        for path in _files(folder):
            state.update(f"{path.relative_to(folder)}\0".encode())
            if path.parent == folder and path.name.startswith(f"{name}."):
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        state.update(block)
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
    package = package or Path(__file__).resolve().parents[2]
    versions = {name: version(name) for name in VERSIONED_PACKAGES}
    state = hashlib.blake2b(json.dumps([sys.version_info[:2], versions]).encode(), digest_size=_DIGEST_SIZE)
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
