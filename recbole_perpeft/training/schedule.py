"""The learning rate over a training."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.training.gradients import MeanGradient
from recbole_perpeft.training.trainer import RunTrainer
from recbole_perpeft.training.workers import ALONE, Workers


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """How the learning rate changes over the steps of a training."""

    lr_scheduler_type: Literal["constant", "linear"] = setting(
        "constant", "The learning rate over all epochs: constant, or linear, which falls to 0 at the last of them."
    )
    warmup_ratio: float = setting(
        0.0, "Share of the steps in which the learning rate rises to its full value.", least=0, below=1
    )

    def share(self, step: int, n_steps: int) -> float:
        """Share of the full learning rate in a step.

        Args:
            step: Out of 0 .. n_steps - 1.
            n_steps: Of the whole training.
        """
        n_warm = int(self.warmup_ratio * n_steps)
        if step < n_warm:
            return (step + 1) / n_warm
        return 1.0 if self.lr_scheduler_type == "constant" else (n_steps - step) / (n_steps - n_warm)


class ScheduledTrainer(RunTrainer):
    """`RunTrainer` whose learning rates follow `ScheduleSettings`, each from its own full value.

    A rate follows from the number of the step, so that a resumed training goes on where it was.
    """

    settings_classes: tuple[type[Settings], ...] = (ScheduleSettings,)

    def __init__(self, config, model, workers: Workers = ALONE) -> None:
        super().__init__(config, model, workers)
        self._schedule = settings_from(config, ScheduleSettings)
        self._step, self._n_steps = 0, 1
        self._full_rates: list[float] = []

    @property
    def first_epoch(self) -> int:
        """Epoch in which the schedule begins; it ends with the last of `epochs`."""
        return 0

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        an_epoch = self._n_steps_an_epoch(train_data)
        self._step = (epoch_idx - self.first_epoch) * an_epoch
        self._n_steps = (self.epochs - self.first_epoch) * an_epoch
        self._full_rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        finally:
            self._set_rates(1.0)
            self._full_rates = []

    def _train_step(
        self, batches: Iterable[Any], loss_func, gradient: MeanGradient | None = None, n_batches: int = 1
    ) -> Tensor:
        if self._full_rates:  # within an epoch: a step by itself has the full rates
            self._set_rates(self._schedule.share(self._step, self._n_steps))
            self._step += 1
        return super()._train_step(batches, loss_func, gradient, n_batches)

    def _set_rates(self, share: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = rate * share
