"""Settings that every run reads, checked before anything is read or written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")


def _number(default: Any, least: float, most: float = math.inf) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class RunSettings:
    """What RecBole's trainers, loaders and data sets take from the settings, whatever the model.

    Raises:
        PerPEFTError: a value is out of range.
    """

    dataset: str = "aspects"
    data_path: str = "dataset_atomic"
    cache_folder: str = "cache"
    runs_folder: str = "runs"
    load_col: dict | None = None
    val_interval: dict | None = None
    clip_grad_norm: dict | None = None
    learner: str = "adam"
    metrics: list = field(default_factory=list)
    topk: list = field(default_factory=list)
    valid_metric: str | None = None
    show_progress: bool = True
    use_gpu: bool = True
    reproducibility: bool = True
    enable_amp: bool = False
    enable_scaler: bool = False
    epochs: int = _number(1, least=1)
    train_batch_size: int = _number(1, least=1)
    eval_batch_size: int = _number(1, least=1)
    eval_step: int = _number(1, least=0)
    stopping_step: int = _number(10, least=0)
    worker: int = _number(0, least=0)
    seed: int = _number(0, least=0, most=2**32 - 1)
    learning_rate: float = _number(1e-3, least=0)
    weight_decay: float = _number(0.0, least=0)
    MAX_ITEM_LIST_LENGTH: int = _number(10, least=1)
    metric_decimal_place: int = _number(4, least=0)
    loss_decimal_place: int = _number(4, least=0)

    def __post_init__(self) -> None:
        for setting in fields(self):
            if setting.metadata:
                self._check_range(setting.name, **setting.metadata)
        for key in ("data_path", "cache_folder", "runs_folder"):
            if not getattr(self, key):
                raise PerPEFTError(f"{key} is empty: name a folder ('.' for the current one)")
        if not self.dataset or self.dataset in (".", "..") or "/" in self.dataset or "\\" in self.dataset:
            raise PerPEFTError(f"dataset is {self.dataset!r}: give a name, and the folder above it as data_path")
        if self.learner.lower() not in LEARNERS:
            raise PerPEFTError(f"learner is {self.learner!r}: choose one of {', '.join(LEARNERS)}")
        self._check_valid_metric()

    def _check_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (least <= value <= most and math.isfinite(value)):
            limits = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            raise PerPEFTError(f"{name} is {value}: it must be a finite number, {limits}")

    def _check_valid_metric(self) -> None:
        if self.valid_metric is None:
            return
        ranking = [f"{metric}@{place}" for metric in self.metrics for place in self.topk]
        if self.valid_metric.lower() not in {name.lower() for name in (*ranking, *self.metrics)}:
            raise PerPEFTError(
                f"valid_metric is {self.valid_metric}, which metrics {self.metrics} and topk {self.topk} do not give: "
                f"choose one of {', '.join(ranking or self.metrics)}"
            )
