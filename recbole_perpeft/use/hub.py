"""An exported folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError, one_line

_STAYS_HERE = ("users.parquet",)  # who somebody's customers are is nobody else's


def push(folder: Path, repository: str, public: bool = False) -> str:
    """Upload a folder; the ids of users are left out.

    Args:
        folder: what `export` made.
        repository: name on the hub, `<owner>/<name>`; made where it is missing.
        public: whether a new repository can be seen by everybody.

    Returns:
        Address of the upload.

    Raises:
        PerPEFTError: the hub does not take it.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=list(_STAYS_HERE),
            commit_message="Export of a model of recbole_perpeft",
        )
    except Exception as error:  # of the hub, or of the library that it is asked through, which differs by release
        raise PerPEFTError(
            f"the hub does not take {repository}: {one_line(error)}; {folder} is complete and can be uploaded later"
        ) from error
    return str(done)
