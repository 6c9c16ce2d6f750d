"""Training of VIP5: warm-up, then a linear decay of the learning rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from recbole_perpeft.core.run_settings import RunSettings
from recbole_perpeft.core.settings import Settings, same_as, setting, settings_from
from recbole_perpeft.training.gradients import MeanGradient
from recbole_perpeft.training.trainer import RunTrainer
from recbole_perpeft.training.workers import ALONE, Workers


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The learning rate over a training."""

    learning_rate: float = same_as(RunSettings, "learning_rate")
    warmup_ratio: float = setting(
        0.1, "Share of the steps in which the learning rate rises; then it falls to 0.", least=0, below=1
    )

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step out of 0 .. n_steps - 1."""
        n_warm = int(self.warmup_ratio * n_steps)
        share = (step + 1) / n_warm if step < n_warm else (n_steps - step) / (n_steps - n_warm)
        return self.learning_rate * share


class VIP5Trainer(RunTrainer):
    """`RunTrainer` with warm-up and linear decay over all `epochs`, of what is trainable alone.

    The rate follows from the number of the step, so that a resumed training goes on where it was.
    """

    settings_classes = (ScheduleSettings,)

    def __init__(self, config, model, workers: Workers = ALONE) -> None:
        super().__init__(config, model, workers)
        self._schedule = settings_from(config, ScheduleSettings)
        self._step, self._n_steps = 0, 1

    def _build_optimizer(self, **kwargs):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return super()._build_optimizer(**{"params": trained} | kwargs)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        n_steps = self._n_steps_an_epoch(train_data)
        self._step, self._n_steps = epoch_idx * n_steps, self.epochs * n_steps
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _train_step(self, batches: Iterable[Any], loss_func, gradient: MeanGradient | None = None, n_batches: int = 1):
        for group in self.optimizer.param_groups:
            group["lr"] = self._schedule.rate(self._step, self._n_steps)
        self._step += 1
        return super()._train_step(batches, loss_func, gradient, n_batches)
