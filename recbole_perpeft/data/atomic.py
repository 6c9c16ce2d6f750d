"""Checks of atomic files before RecBole reads them: it skips unknown columns and fails far from the cause."""

from __future__ import annotations

import difflib
from pathlib import Path

import pandas as pd
from recbole.utils import FeatureType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER

BUNDLED_DATASET = "aspects"
_TYPES = tuple(feature_type.value for feature_type in FeatureType)


def prepare_dataset_folder(config) -> None:
    """Make the bundled data set if it is asked for and not there yet, and check the files that the run reads.

    Args:
        config: `Config`; keys `dataset`, `data_path`, `load_col`, `benchmark_filename`, `field_separator`.

    Raises:
        PerPEFTError: the folder or a file is missing, a header is broken, or a column is not there.
    """
    folder, name = config.dataset_folder, config["dataset"]
    if not folder.exists() and name == BUNDLED_DATASET:
        from recbole_perpeft.data.aspects.catalogue import make_aspects

        LOGGER.info(f"making the data set {name} in {folder} (once)")
        make_aspects(folder, exist_ok=True, show_progress=bool(config["show_progress"]))
    if not folder.is_dir():
        raise PerPEFTError(_missing_folder(folder, name))
    parts = config["benchmark_filename"]
    logs = [f"{name}.inter"] if parts is None else [f"{name}.{part}.inter" for part in parts]
    for log in logs:
        _check_file(folder / log, "inter", config)
    for suffix in config["load_col"] or {}:
        if suffix != "inter" and config["load_col"][suffix]:
            _check_file(folder / f"{name}.{suffix}", suffix, config)


def first_bad_number(config) -> str | None:
    """The first value of the log that is no number but stands in a number's column; None if there is none.

    RecBole's reader says only that there is one somewhere. This reads the file a second time: call it after a failure.

    Args:
        config: as for `prepare_dataset_folder`.
    """
    path = config.dataset_folder / f"{config['dataset']}.inter"
    if not path.is_file():
        return None
    separator = config["field_separator"]
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, encoding=config["encoding"], on_bad_lines="skip")
    except (ValueError, OSError):
        return None  # what stands in the way is not a number
    for column in table.columns[table.columns.str.endswith(":float")]:
        wrong = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
        if wrong.any():
            row = int(wrong.argmax())
            return f"{path}, line {row + 2}: {table[column][row]!r} in the column {column} is not a number"
    return None


def _missing_folder(folder: Path, name: str) -> str:
    present = sorted(path.name for path in folder.parent.glob("*/") if (path / f"{path.name}.inter").is_file())
    found = f"it holds {', '.join(present)}" if present else "it holds no data set"
    if not folder.parent.is_dir():
        found = "which does not exist"
    return (
        f"there is no data set {name}: {folder} is missing. data_path is {folder.parent}, {found}. "
        f"Put {name}.inter into {folder}, or set --data_path to the folder that holds {name}/"
    )


def _check_file(path: Path, suffix: str, config) -> None:
    if not path.is_file():
        hint = "; a folder that is only half there is best deleted" if config["dataset"] == BUNDLED_DATASET else ""
        raise PerPEFTError(f"{path} is missing; load_col asks for columns of it{hint}")
    columns = _columns(path, config["field_separator"], config["encoding"])
    wanted = (config["load_col"] or {}).get(suffix, "*")
    if wanted == "*":
        return
    for column in wanted:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise PerPEFTError(
                f"{path} has no column {column}, which load_col asks for; it has {', '.join(columns)}.{hint}"
            )


def _columns(path: Path, separator: str, encoding: str | None) -> list[str]:
    """Names in the header line `name:type<tab>name:type ...`."""
    try:
        with path.open(encoding=encoding or "utf-8") as file:
            header = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError, LookupError) as error:  # LookupError: no such encoding
        raise PerPEFTError(f"cannot read {path}: {error}") from error
    columns = []
    for field in header.split(separator):
        name, _, feature_type = field.partition(":")
        if not name or feature_type not in _TYPES:
            raise PerPEFTError(
                f"{path}, line 1: {field!r} is not name:type with a type of {', '.join(_TYPES)}; "
                f"columns are separated by {separator!r}"
            )
        columns.append(name)
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise PerPEFTError(f"{path}, line 1: the column {repeated[0]} is there twice")
    return columns
