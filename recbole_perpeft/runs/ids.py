"""Which users and items a run knows, kept in its folder: a model can then serve histories without the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from recbole.utils import FeatureSource, FeatureType

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import written_whole

IDS_FILE = "ids.parquet"
# Filters would count rows that stand for nothing.
NO_FILTERS = {
    "benchmark_filename": None,
    "filter_inter_by_user_or_item": False,
    "item_inter_num_interval": "[0,inf)",
    "rm_dup_inter": None,
    "user_inter_num_interval": "[0,inf)",
    "val_interval": None,
}


def write_ids(folder: Path, dataset: Any) -> None:
    """Write `ids.parquet`: columns `is_item` and `token`, users and then items in the order of their ids."""
    tokens = [dataset.field2id_token[field][1:].astype(str) for field in (dataset.uid_field, dataset.iid_field)]
    is_item = np.repeat([False, True], [len(part) for part in tokens])
    table = pa.table({"is_item": is_item, "token": pa.array(np.concatenate(tokens).astype(object), pa.string())})
    with written_whole(folder / IDS_FILE) as draft:
        pq.write_table(table, draft, compression="zstd")


def read_ids(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of users and of items in the order of their ids, without the pads.

    Raises:
        PerPEFTError: The file is missing, as of runs of earlier versions, or damaged.
    """
    path = folder / IDS_FILE
    if not path.is_file():
        raise PerPEFTError(
            f"{folder} has no {IDS_FILE} with the ids of its items: give the data set that it was trained on "
            "(--data_path)"
        )
    try:
        table = pd.read_parquet(path)
        is_item, tokens = table["is_item"].to_numpy(dtype=bool), table["token"].to_numpy(dtype=object)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise PerPEFTError(
            f"{path} is damaged; give the data set that the run was trained on (--data_path)"
        ) from error
    return tokens[~is_item], tokens[is_item]


def without_log(dataset_class: type, users: np.ndarray, items: np.ndarray) -> type:
    """A data set class that knows users and items, but not what they had to do with each other.

    RecBole gets its ids from a log. This one has as many rows as it takes for every user and every item to appear, in
    the order of their ids; a model that is made with it gets its weights from a checkpoint.

    Args:
        dataset_class: of the model, with checks of `CheckedLog`.
        users: tokens in the order of their ids.
        items: the same.
    """
    n = max(len(items), 3 * len(users))  # a user of fewer than three rows would have no place in a split
    place = np.arange(n)

    class WithoutLog(dataset_class):
        """The same without its log."""

        is_without_log = True

        def _load_data(self, token: str, dataset_path: str) -> None:
            self._load_inter_feat(token, dataset_path)
            self.user_feat = self._load_user_or_item_feat(token, dataset_path, FeatureSource.USER, "uid_field")
            self.item_feat = self._load_user_or_item_feat(token, dataset_path, FeatureSource.ITEM, "iid_field")
            self._load_additional_feat(token, dataset_path)

        def _load_inter_feat(self, token: str, dataset_path: str) -> None:
            columns = {
                self.uid_field: (users[place * len(users) // n], FeatureType.TOKEN),
                self.iid_field: (items[place % len(items)], FeatureType.TOKEN),
                self.time_field: (place.astype(float), FeatureType.FLOAT),
            }
            for field, (_, kind) in columns.items():
                self.set_field_property(field, kind, FeatureSource.INTERACTION, 1)
            self.inter_feat = pd.DataFrame({field: values for field, (values, _) in columns.items()})

    return WithoutLog
