"""Top-k lists from a trained model, for users of the training data and for histories of anybody else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.models.base import ContentRecommender
from recbole_perpeft.runs.run import load

_USERS_AT_ONCE = 1024


class Recommender:
    """Recommends items by their tokens.

    Users of the training data are scored by their own group. A history of anybody else goes to the group with the
    nearest centroid (by the global module). Items with content but without interactions can be recommended and may
    stand in histories: their vector is the content part alone.

    Args:
        model: A trained `PerPEFT` or `GlobalPEFT`.
        dataset: Its data set, before it was split.
        history: All interactions of the users, in time order.
    """

    def __init__(self, model, dataset, history: HistoryIndex) -> None:
        self.model = model.eval()
        self.history = history
        self.user_ids = {token: i for i, token in enumerate(dataset.field2id_token[model.USER_ID])}
        known = dataset.field2id_token[model.ITEM_ID]
        self.n_known = len(known)
        has_content = model.item_encoder.content_encoder.content_size > 0
        self.new_items = sorted(set(model.item_tokens_with_content).difference(known)) if has_content else []
        self.item_tokens = np.array([*known, *self.new_items])
        self.item_ids = {token: i for i, token in enumerate(self.item_tokens)}
        self._catalogues: dict[int | None, Tensor] = {}

    @classmethod
    def from_file(cls, model_file: str | Path) -> "Recommender":
        """Reads a checkpoint, and the data set it was trained on."""
        _, model, dataset, train_data, valid_data, test_data = load(model_file)
        if not isinstance(model, ContentRecommender):
            raise PerPEFTError(
                f"{model_file} is a checkpoint of {type(model).__name__}: lists are made by models that read content, "
                "such as PerPEFT and GlobalPEFT"
            )
        parts = [loader.dataset.phase_history.pairs() for loader in (train_data, valid_data, test_data)]
        users, items = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(model, dataset, HistoryIndex.from_pairs(users, items, model.n_users))

    def for_users(self, users: Sequence[str], k: int = 10, **options) -> pd.DataFrame:
        """Top-k lists of users of the training data, from all their interactions.

        Args:
            users: User tokens.
            k: Length of a list.
            options: `exclude_seen`, `include_new_items` as in `for_histories`.

        Returns:
            Columns user_id, rank (from 1), item_id, score, group.

        Raises:
            PerPEFTError: If a user is not in the data set; such users need `for_histories`.
        """
        unknown = [user for user in users if self.user_ids.get(user, 0) == 0]
        if unknown:
            raise PerPEFTError(
                f"{len(unknown)} users are not in the data set: {', '.join(unknown[:10])}; give their history instead"
            )
        ids = np.array([self.user_ids[user] for user in users])
        row, items = self.history.rows(ids)
        histories = HistoryIndex.from_pairs(row, items, len(ids))
        groups = self.model.group_of(torch.from_numpy(ids))
        if groups is not None and (groups < 0).any():  # users without train items
            groups = groups.where(groups >= 0, self._nearest_groups(histories))
        lists = self._lists(histories, groups, k, **options)
        lists.insert(0, "user_id", np.asarray(users)[lists.pop("row")])
        return lists

    def for_histories(self, histories: Sequence[Sequence[str]], k: int = 10, **options) -> pd.DataFrame:
        """Top-k lists for histories of users who need not have been in training.

        Args:
            histories: Item tokens of each user, oldest first; at least one each.
            k: Length of a list.
            options: `exclude_seen` (True): items of the history are left out; `include_new_items` (False): items
                that have content but no interactions are candidates too.

        Returns:
            Columns row (place in `histories`), rank (from 1), item_id, score, group.

        Raises:
            PerPEFTError: If a history is empty or names an item without content.
        """
        for row, history in enumerate(histories):
            unknown = [item for item in history if self.item_ids.get(item, 0) == 0]
            if unknown or not len(history):
                reason = f"items that are not in the data set: {', '.join(unknown[:10])}" if unknown else "no item"
                raise PerPEFTError(f"history {row} has {reason}")
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        items = np.array([self.item_ids[item] for history in histories for item in history])
        index = HistoryIndex.from_pairs(rows, items, len(histories))
        return self._lists(index, self._nearest_groups(index), k, **options)

    @torch.no_grad()
    def _catalogue(self, group: int | None) -> Tensor:
        """Vectors of the known and then of the new items, [n_known + n_new, d]."""
        if group not in self._catalogues:
            parts = [self.model.catalogue(group)]
            if self.new_items:
                parts.append(self.model.item_encoder.new_item_vectors(self.new_items, group))
            self._catalogues[group] = torch.cat(parts)
        return self._catalogues[group]

    @torch.no_grad()
    def _user_vectors(self, histories: HistoryIndex, rows: np.ndarray, group: int | None) -> Tensor:
        newest = histories.newest(rows, self.model.max_seq_length)
        item_seq, length = (torch.from_numpy(part).to(self.model.device) for part in newest)
        return self.model.user_vectors(item_seq, length, self._catalogue(group))

    def _nearest_groups(self, histories: HistoryIndex) -> Tensor | None:
        if not self.model.n_groups:
            return None
        return self.model.nearest_group(self._user_vectors(histories, np.arange(histories.n_users), None)).cpu()

    def _lists(self, histories: HistoryIndex, groups: Tensor | None, k: int, **options) -> pd.DataFrame:
        if k < 1:
            raise PerPEFTError(f"k is {k}: a list has at least one item")
        of_row = np.full(histories.n_users, -1) if groups is None else groups.numpy()
        parts = []
        for group in np.unique(of_row).tolist():
            rows = np.flatnonzero(of_row == group)
            for start in range(0, len(rows), _USERS_AT_ONCE):
                part = rows[start : start + _USERS_AT_ONCE]
                parts.append(self._lists_of_group(histories, part, None if group < 0 else group, k, **options))
        return pd.concat(parts).sort_values(["row", "rank"], ignore_index=True)

    def _lists_of_group(
        self, histories, rows, group, k, exclude_seen: bool = True, include_new_items: bool = False
    ) -> pd.DataFrame:
        catalogue = self._catalogue(group)
        n_candidates = len(catalogue) if include_new_items else self.n_known
        scores = self._user_vectors(histories, rows, group) @ catalogue[:n_candidates].T
        scores[:, 0] = -torch.inf
        if exclude_seen:
            row, items = histories.rows(rows)
            seen = items < n_candidates
            scores[torch.from_numpy(row[seen]), torch.from_numpy(items[seen])] = -torch.inf
        best, items = scores.topk(min(k, n_candidates - 1), dim=1)
        kept = (best > -torch.inf).cpu().numpy()
        row, rank = np.nonzero(kept)
        return pd.DataFrame(
            {
                "row": rows[row],
                "rank": rank + 1,
                "item_id": self.item_tokens[items.cpu().numpy()[kept]],
                "score": best.cpu().numpy()[kept],
                "group": -1 if group is None else group,
            }
        )
