"""What the breakdowns of a comparison need to know about a data set: histories of users, popularity of items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recbole_perpeft.data.dataset import history_of
from recbole_perpeft.runs.run import create_dataset


@dataclass(frozen=True)
class DataDescription:
    """Users and items of a data set, without the pads.

    Attributes:
        users: tokens.
        items: tokens.
        history_length: int64 [n_users], interactions before the test items.
        train_count: int64 [n_items], interactions in the train part.
        true_group: [n_users], the group that the data set names; None if it is not asked for.
    """

    users: pd.Index
    items: pd.Index
    history_length: np.ndarray
    train_count: np.ndarray
    true_group: np.ndarray | None = None


def describe(config, true_group_field: str | None = None) -> DataDescription:
    """Read and split the data set of a configuration.

    Args:
        config: settings of any model without needs of its own.
        true_group_field: column of the `.user` file that names the users' true groups; it must be in `load_col`.

    Raises:
        PerPEFTError: the data cannot be read.
    """
    dataset = create_dataset(config)
    built = dataset.build()
    _, train_items = history_of(built, "valid").pairs()
    return DataDescription(
        users=pd.Index(dataset.field2id_token[dataset.uid_field][1:].astype(str)),
        items=pd.Index(dataset.field2id_token[dataset.iid_field][1:].astype(str)),
        history_length=history_of(built, "test").lengths[1:],
        train_count=np.bincount(train_items, minlength=dataset.item_num)[1:],
        true_group=None if true_group_field is None else dataset.user_feat[true_group_field].numpy()[1:],
    )
