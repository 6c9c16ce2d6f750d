"""Population based training that ends."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler


class EndingPopulation(PopulationBasedTraining):
    """Ray's scheduler, by which a trial that has all its epochs ends.

    Otherwise it could go on from an earlier state of a better trial after its last epoch, again and again until that
    trial has ended.

    Args:
        max_epochs: largest number of epochs of a trial.
        settings: those of Ray's scheduler.
    """

    def __init__(self, max_epochs: int, **settings: Any):
        super().__init__(**settings)
        self._max_epochs = max_epochs

    def on_trial_result(self, tune_controller, trial, result) -> str:
        """What to do with a trial that has reported an epoch."""
        if result[self._time_attr] >= self._max_epochs:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)
