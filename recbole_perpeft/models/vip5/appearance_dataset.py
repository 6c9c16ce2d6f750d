"""Sequences that can tell in which order items appear, for the order of names that leaks."""

import numpy as np

from recbole_perpeft.data.dataset import SequenceDataset


class AppearanceDataset(SequenceDataset):
    """`SequenceDataset` whose parts know the items of all users in order if `id_order` is `appearance`.

    Attributes:
        items_in_order: int64 [n_interactions], user by user in time order, held-out items included; None unless the
            order of names needs it.
    """

    items_in_order: np.ndarray | None = None

    def build(self) -> list["SequenceDataset"]:
        """As `SequenceDataset.build`."""
        parts = super().build()
        if self.config["id_order"] == "appearance":
            for part in parts:
                part.items_in_order = self.inter_feat[self.iid_field].numpy()
        return parts
