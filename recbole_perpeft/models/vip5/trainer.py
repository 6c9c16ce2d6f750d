"""Training of VIP5: warm-up, then a linear decay of the learning rate."""

from dataclasses import dataclass
from typing import Literal

from recbole_perpeft.core.settings import setting
from recbole_perpeft.training.schedule import ScheduledTrainer, ScheduleSettings


@dataclass(frozen=True)
class VIP5ScheduleSettings(ScheduleSettings):
    """Warm-up and linear decay, as VIP5's authors train."""

    lr_scheduler_type: Literal["constant", "linear"] = setting("linear", "As for other models.")
    warmup_ratio: float = setting(0.1, "As for other models.", least=0, below=1)


class VIP5Trainer(ScheduledTrainer):
    """`ScheduledTrainer` of what is trainable alone."""

    settings_classes = (VIP5ScheduleSettings,)

    def _build_optimizer(self, **kwargs):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return super()._build_optimizer(**{"params": trained} | kwargs)
