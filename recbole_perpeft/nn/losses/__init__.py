"""Training losses by name; a new one is a module with a class under `register_loss`, in this package or elsewhere."""

from recbole_perpeft.nn.losses.loss import LOSSES, Loss, LossChoice, NextItems, loss_from, register_loss, vectors_of

__all__ = ["LOSSES", "Loss", "LossChoice", "NextItems", "loss_from", "register_loss", "vectors_of"]
