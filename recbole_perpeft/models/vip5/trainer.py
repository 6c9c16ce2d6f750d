"""Training of VIP5: warm-up, then a linear decay of the learning rate (`properties/model/VIP5.yaml`)."""

from recbole_perpeft.training.schedule import ScheduledTrainer


class VIP5Trainer(ScheduledTrainer):
    """`ScheduledTrainer` of what is trainable alone."""

    def _build_optimizer(self, **kwargs):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return super()._build_optimizer(**{"params": trained} | kwargs)
