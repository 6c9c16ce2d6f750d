"""Checks of atomic files before RecBole reads them: it skips unknown columns and fails far from the cause."""

from __future__ import annotations

import difflib
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.files.atomic_table import read_header

BUNDLED_DATASET = "aspects"


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
    for log in log_files(config):
        _check_file(log, "inter", config)
    for suffix in config["load_col"] or {}:
        if suffix != "inter" and config["load_col"][suffix]:
            _check_file(folder / f"{name}.{suffix}", suffix, config)


def log_files(config) -> list[Path]:
    """The files of a data set's log: one, or one a part."""
    folder, name, parts = config.dataset_folder, config["dataset"], config["benchmark_filename"]
    return [folder / (f"{name}.inter" if part is None else f"{name}.{part}.inter") for part in parts or [None]]


def is_log_there(config) -> bool:
    """Whether a run finds its log, or makes it, as that of the bundled data set where its folder is not there."""
    is_made = config["dataset"] == BUNDLED_DATASET and not config.dataset_folder.exists()
    return is_made or all(log.is_file() for log in log_files(config))


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
        hint = "a folder that is only half there is best deleted"
        if config["dataset"] != BUNDLED_DATASET:
            hint = f"where the data set has moved, --data_path names the folder that holds {config['dataset']}/"
        raise PerPEFTError(f"{path} is missing; load_col asks for columns of it; {hint}")
    columns = read_header(path, config["field_separator"], config["encoding"])
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
