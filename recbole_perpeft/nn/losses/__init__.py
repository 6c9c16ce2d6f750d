"""Training losses by name; a new one is a module with a class under `register_loss`, in this package or elsewhere."""

from recbole_perpeft.nn.losses.bce import BCELoss
from recbole_perpeft.nn.losses.in_batch import InBatchLoss
from recbole_perpeft.nn.losses.loss import (
    Loss,
    NextItems,
    list_losses,
    loss_from,
    loss_keys,
    register_loss,
    vectors_of,
)

__all__ = [
    "BCELoss",
    "InBatchLoss",
    "Loss",
    "NextItems",
    "list_losses",
    "loss_from",
    "loss_keys",
    "register_loss",
    "vectors_of",
]
