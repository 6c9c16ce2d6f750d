"""The folder of a data set, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_perpeft.core.errors import PerPEFTError

REPORT = "conversion.json"
IMAGE_DRAFTS = ".images"  # in a draft: what is kept of a conversion that was interrupted


class UnfinishedImagesError(PerPEFTError):
    """Images could not be finished; those that are done are kept for the next run."""


@contextmanager
def output_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a draft folder, which becomes `folder` when the block ends without an error.

    An error leaves nothing behind. A kill or an interruption leaves the draft; the next run goes on with its images.

    Args:
        folder: where the data set belongs.
        overwrite: whether an earlier conversion there may be replaced.

    Raises:
        PerPEFTError: the folder is there and may not be replaced, another conversion is writing it, or the disk does
            not take it.
    """
    folder = folder.absolute()
    _check_replaceable(folder, overwrite)
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with FileLock(lock, timeout=0):
            try:
                _clear(draft)
                yield draft
                shutil.rmtree(draft / IMAGE_DRAFTS, ignore_errors=True)
                _replace(draft, folder)
            except (KeyboardInterrupt, UnfinishedImagesError):
                raise
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise PerPEFTError(f"{folder} is being written by another conversion; wait for it") from error
    except OSError as error:
        raise PerPEFTError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; free space or choose another folder"
        ) from error


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.name:
        raise PerPEFTError(f"{folder} cannot be a data set; its name is that of the last folder")
    if not folder.exists():
        return
    if not overwrite:
        raise PerPEFTError(f"{folder} exists already: pass --overwrite or choose another folder")
    if not (folder / REPORT).is_file():
        raise PerPEFTError(f"{folder} was not written by a conversion (it has no {REPORT}): delete it yourself")


def _clear(draft: Path) -> None:
    draft.mkdir(exist_ok=True)
    for path in draft.iterdir():
        if path.name == IMAGE_DRAFTS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _replace(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it.

    Raises:
        PerPEFTError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror}") from error


def write_report(folder: Path, report: dict) -> None:
    """Write `conversion.json`; it holds no time and no place, so that equal conversions are equal files."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
