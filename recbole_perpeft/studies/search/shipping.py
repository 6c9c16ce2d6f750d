"""A data set that travels to workers through Ray's object store, where machines share no folder with the data."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from recbole_perpeft.core.digest import stream_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import is_inside
from recbole_perpeft.core.whole import alone, disk_errors

_CHUNK_BYTES = 64 * 2**20
_UNPACKED = ".complete"
# Pythons before 3.10.12 and 3.11.4 have no such filter.
_EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


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
                    unpack(archive, root / "data")
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
        pack(folder, name, archive)
        archive.seek(0)
        key = stream_hash(archive)[:16]
        archive.seek(0)
        while chunk := archive.read(_CHUNK_BYTES):
            chunks.append(ray.put(np.frombuffer(chunk, dtype=np.uint8)))
    return ShippedData(name, key, tuple(chunks))


def pack(folder: Path, name: str, archive: IO[bytes]) -> None:
    """Write an archive of a folder; what links lead to takes their place, as elsewhere they would lead nowhere.

    Args:
        folder: the folder.
        name: its name in the archive.
        archive: where the archive goes.
    """
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as members:
        members.add(folder, arcname=name, filter=_without_owner)


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Unpack an archive of files.

    Args:
        archive: a tar archive.
        folder: where its files go.

    Raises:
        PerPEFTError: it has something else than files and folders, or a path that leaves the folder.
    """
    with tarfile.open(fileobj=archive) as members:
        for member in members:
            if not is_inside(member.name) or not (member.isreg() or member.isdir()):
                raise PerPEFTError(f"the shipped data set has {member.name!r}, which is no file of its folder")
        members.extractall(folder, **_EXTRACTION)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
