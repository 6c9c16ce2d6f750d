"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path of a draft to write to, which becomes `path` when the block ends without an error.

    A draft is named after its file alone: what a killed process leaves is overwritten by the run that goes on.

    Args:
        path: where the file belongs. Only one process may write it.

    Raises:
        PerPEFTError: the disk does not take it; nothing is left behind, an earlier file stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise PerPEFTError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
