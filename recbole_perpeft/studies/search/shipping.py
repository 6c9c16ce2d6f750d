"""A data set that travels to workers through Ray's object store, where machines share no folder with the data."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_perpeft.core.digest import stream_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone, disk_errors

_CHUNK_BYTES = 64 * 2**20
_UNPACKED = ".complete"


@dataclass(frozen=True)
class ShippedData:
    """A data set in the object store.

    Attributes:
        name: name of the data set.
        key: names what was shipped; a machine unpacks it once.
        chunks: references to the parts of a tar archive.
    """

    name: str
    key: str
    chunks: tuple[Any, ...]

    def settings_here(self) -> dict[str, str]:
        """Unpack the data set on this machine unless it is there already; settings that lead to it."""
        import ray

        root = private_folder(Path(tempfile.gettempdir()) / f"recbole_perpeft-{self.key}")
        with alone(root, file=root / "unpacking.lock"):
            if not (root / _UNPACKED).exists():
                with tempfile.TemporaryFile() as archive:
                    for chunk in self.chunks:
                        archive.write(ray.get(chunk))
                    archive.seek(0)
                    with tarfile.open(fileobj=archive) as members:
                        members.extractall(root / "data", filter="data")
                (root / _UNPACKED).touch()
        return {"data_path": str(root / "data"), "cache_folder": str(root / "cache")}


def private_folder(path: Path) -> Path:
    """A folder in a place that all users may write to, which nobody but this user can read or has put there.

    Raises:
        PerPEFTError: something of another user, a link or a file is in its place, or it cannot be made.
    """
    with disk_errors(path):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            raise PerPEFTError(f"{path} is not a folder of this user: remove it, or set TMPDIR to another folder")
        os.chmod(path, 0o700)
    return path


def ship(folder: Path, name: str) -> ShippedData:
    """Put a data set into the object store of the running Ray.

    Args:
        folder: its folder.
        name: its name.
    """
    import ray

    chunks = []
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as members:
            members.add(folder, arcname=name, filter=_without_owner)
        archive.seek(0)
        key = stream_hash(archive)[:16]
        archive.seek(0)
        while chunk := archive.read(_CHUNK_BYTES):
            chunks.append(ray.put(np.frombuffer(chunk, dtype=np.uint8)))
    return ShippedData(name, key, tuple(chunks))


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
