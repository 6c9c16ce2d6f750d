"""A finished run whose model takes the place of the global stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.log import check_same_data
from recbole_perpeft.models.build import ContentControl
from recbole_perpeft.models.perpeft.content import ItemEncoderSettings
from recbole_perpeft.nn.users.sasrec import TransformerSettings
from recbole_perpeft.training.checkpoint import load_checkpoint

# What does not change vectors, or what the fingerprints of weights and of content tell: encoders may have moved.
_FREE = {
    *("foundation_model", "text_encoder", "image_encoder", "towers", "quantization", "cache_dtype"),
    *("encoder_chunk_size", "cache_frozen_blocks", "gradient_checkpointing", "seed"),
}
_OF_THE_DATA = ("benchmark_filename", "shuffle_histories")
_OF_THE_SPLIT = ("split", "order", "group_by")


def read_global_run(folder: Path, config, dataset) -> dict[str, Any]:
    """The checkpoint of a run of `GlobalPEFT`, whose model another run goes on with.

    Args:
        folder: Of the run.
        config: That of the other run.
        dataset: Its train part.

    Raises:
        PerPEFTError: There is no such checkpoint, or it was trained on other data, by another split, or with settings
            under which its weights mean something else.
    """
    file = folder / "best.pth"
    content = load_checkpoint(file, "GlobalPEFT")
    if not (folder / "result.json").is_file():
        LOGGER.warning(
            f"global_run: {folder} did not finish; its best model so far is taken, and run_recbole.py "
            f"--resume={folder} would train it on"
        )
    check_same_data(content.get("data", {}), dataset, file, ("ids", "log"))
    before, now = _decisive(content.get("config", {}), config), _decisive(config, config)
    differences = [f"{key} {before[key]} and not {now[key]}" for key in now if before[key] != now[key]]
    if differences:
        raise PerPEFTError(
            f"global_run: {file} was trained with {', '.join(differences)}; give both runs the same, or leave "
            "global_run out"
        )
    return content


def _decisive(settings: Mapping[str, Any], fallback: Any) -> dict[str, Any]:
    """Settings that both runs must share, by name; what a checkpoint does not know is as in the other run."""
    declared = (one for cls in (ItemEncoderSettings, TransformerSettings, ContentControl) for one in cls.declared())
    keys = [one.name for one in declared if one.kind is None and one.name not in _FREE]

    def value(key: str) -> Any:
        return settings[key] if key in settings else fallback[key]

    split = {f"eval_args: {part}": (value("eval_args") or {}).get(part) for part in _OF_THE_SPLIT}
    return {key: value(key) for key in (*dict.fromkeys(keys), "user_encoder", *_OF_THE_DATA)} | split
