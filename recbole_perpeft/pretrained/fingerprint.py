"""What identifies the weights of an encoder: a hash of its files, remembered while they do not change."""

import json
import os
from pathlib import Path

from transformers.utils import cached_file

from recbole_perpeft.core.digest import digest, large_file_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import alone, written_whole
from recbole_perpeft.pretrained.processor import LOADING_ERRORS, cannot_load

_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Entries of config.json that say where a model came from, not what it computes.
_ORIGINS = ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_LARGE_FILES_BYTES = 2 * 2**30
_STAMPS = "encoder-hashes.json"


def weights_fingerprint(name: str, kind: str, stamp_folder: Path | None = None) -> str:
    """Short hash of the weight files and configuration of a model, the same on every machine.

    Args:
        name: folder or hub id, as `locate_encoder` gives it.
        kind: `text` or `image`, for messages.
        stamp_folder: where hashes are remembered by size and time of change of the files; `None` hashes them anew.

    Raises:
        PerPEFTError: the files are missing, or the hub cannot be reached.
    """
    state = digest(_configuration(name, kind).encode())
    files = _weight_files(name, kind)
    try:
        for value in _remembered_hashes(files, stamp_folder):
            state.update(value.encode())
    except OSError as error:
        raise PerPEFTError(f"{kind}_encoder: {error.filename}: cannot be read ({error.strerror})") from error
    return state.hexdigest()


def _configuration(name: str, kind: str) -> str:
    path = _file_of(name, "config.json", kind)
    if path is None:
        raise PerPEFTError(f"{kind}_encoder: {name} has no config.json; take the complete model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PerPEFTError(f"{kind}_encoder: {path}: cannot be read ({error})") from error
    return json.dumps(_without_origins(values), sort_keys=True)


def _without_origins(values: dict) -> dict:
    """Without entries that differ between equal models; of a dual encoder, those of its towers too."""
    return {
        key: _without_origins(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _ORIGINS
    }


def _weight_files(name: str, kind: str) -> list[Path]:
    for single, index in zip(_SINGLE_FILES, _INDEXES, strict=True):
        path = _file_of(name, single, kind)
        if path is not None:
            return [path]
        path = _file_of(name, index, kind)
        if path is not None:
            shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = {shard: _file_of(name, shard, kind) for shard in shards}
            missing = [shard for shard, file in paths.items() if file is None]
            if missing:
                raise PerPEFTError(f"{kind}_encoder: {name} lacks {missing[0]}; take the complete model")
            return [file for file in paths.values() if file is not None]
    raise PerPEFTError(f"{kind}_encoder: {name} has no weights ({' or '.join(_SINGLE_FILES)})")


def _file_of(name: str, file: str, kind: str) -> Path | None:
    """A file of a folder, or of a hub id in the hub's own cache; `None` if the model has no such file."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except LOADING_ERRORS as error:
        raise cannot_load(file, name, error, f"{kind}_encoder") from error
    return None if found is None else Path(found)


def _remembered_hashes(files: list[Path], stamp_folder: Path | None) -> list[str]:
    """Hashes of files; those that have not changed since they were last hashed are not read."""
    if stamp_folder is None:
        return [large_file_hash(file) for file in files]
    store = stamp_folder / _STAMPS
    stamps = {str(file.resolve()): _stamp(file) for file in files}
    with alone(store):
        known = _read(store)
        new = [path for path, stamp in stamps.items() if known.get(path, [None])[0] != stamp]
        if sum(os.path.getsize(path) for path in new) > _LARGE_FILES_BYTES:
            LOGGER.info(f"hashing {len(new)} weight files (once)")
        known |= {path: [stamps[path], large_file_hash(Path(path))] for path in new}
        if new:
            with written_whole(store) as draft:
                draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return [known[path][1] for path in stamps]


def _read(store: Path) -> dict[str, list]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
        return {path: [list(stamp), str(value)] for path, (stamp, value) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
