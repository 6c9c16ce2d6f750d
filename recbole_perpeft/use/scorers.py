"""How a trained model of any kind scores items for users: by vectors, in rows of the catalogue, or pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.nn.adapt.groups import ALL_GROUPS
from recbole_perpeft.use.topk import Candidates, Score

USERS_AT_ONCE = 1024
_SCORES_AT_ONCE = 2**25  # of rows of the whole catalogue, 128 MB
_PAIRS_AT_ONCE = 2**15


@runtime_checkable
class VectorModel(Protocol):
    """A model that scores by products of user vectors and item vectors."""

    def catalogue(self, group: int | None, kept: bool = True) -> Tensor:
        """Item vectors of a group, [n_items, d]."""

    def user_vectors(self, item_seq: Tensor, length: Tensor, catalogue: Tensor) -> Tensor:
        """User vectors, [B, d]."""


class Scorer(Protocol):
    """What lists need of a model.

    Attributes:
        n_groups: Groups of users; 0 where all are alike.
        keeps_all: Whether what is computed once a group stays for later lists.
        takes_histories: Whether it reads what users had, so that anybody can be served.
        users_at_once: Users of a batch at most.
        scores_new_items: Whether items without interactions can be scored, as by their content.
        new_items: Those that there are; they follow the known ones.
    """

    n_groups: int
    keeps_all: bool
    takes_histories: bool
    users_at_once: int
    scores_new_items: bool
    new_items: Sequence[str]

    def groups_of(self, users: np.ndarray) -> np.ndarray:
        """Group of users of the log, int64 [n]; -1 for none."""

    def nearest_groups(self, histories: HistoryIndex, rows: np.ndarray) -> np.ndarray:
        """Group of some histories, int64 [n]; -1 for none."""

    def score(
        self, histories: HistoryIndex, rows: np.ndarray, users: np.ndarray, group: int | None, candidates: Candidates
    ) -> Score:
        """Gives scores of candidates.

        Args:
            histories: Items that users had, by row.
            rows: Rows of the users, int64 [B].
            users: Their ids in the log, int64 [B]; 0 for others.
            group: Their group.
            candidates: Who competes.
        """


def scorer_of(model: Any, dataset: Any) -> Scorer:
    """The way in which a model scores."""
    if not isinstance(model, VectorModel):
        return RowScorer(model, dataset)
    return (MixingScorer if getattr(model, "mixes_groups", False) else VectorScorer)(model, dataset)


class VectorScorer:
    """Products of user vectors and item vectors of the users' group.

    Attributes:
        keeps_all: Whether the item vectors of all groups stay in memory once they are needed, or those of the global
            module and of the group at work alone.
    """

    keeps_all = True
    takes_histories = True
    users_at_once = USERS_AT_ONCE

    def __init__(self, model: Any, dataset: Any) -> None:
        self.model = model
        self.n_groups = getattr(model, "n_groups", 0)
        encoder = getattr(model, "item_encoder", None)
        known = set(dataset.field2id_token[dataset.iid_field])
        has_content = encoder is not None and encoder.content_encoder.content_size > 0
        self.scores_new_items = has_content
        self.new_items: Sequence[str] = sorted(set(model.item_tokens_with_content) - known) if has_content else []
        self._n_known = len(known)
        self._vectors: dict[int | None, Tensor] = {}
        self._of_candidates: tuple[int | None, Candidates | None, Tensor] = (None, None, torch.empty(0))

    @torch.no_grad()
    def vectors(self, group: int | None, highest: int | None = None) -> Tensor:
        """Vectors of items for a group, [n_known + n_new, d].

        Args:
            group: None for the global module.
            highest: The highest id that is needed; new items follow the known ones, and are not encoded for nothing.
        """
        if group not in self._vectors:
            if not self.keeps_all:
                self._vectors = {None: self._vectors[None]} if None in self._vectors else {}
                self._of_candidates = (None, None, torch.empty(0))
            self._vectors[group] = self.model.catalogue(group, kept=False)
        found = self._vectors[group]
        if self._lacks_new_items(found, highest):
            new = self.model.item_encoder.new_item_vectors(self.new_items, group)
            found = self._vectors[group] = torch.cat([found, new])
        return found

    def _lacks_new_items(self, vectors: Tensor, highest: int | None) -> bool:
        return bool(self.new_items) and len(vectors) == self._n_known and (highest is None or highest >= self._n_known)

    def vectors_for(self, group: int | None) -> int | None:
        """Whose item vectors score the users of a group: a group, None for the global module, or `ALL_GROUPS`."""
        return group

    @torch.no_grad()
    def user_vectors(self, histories: HistoryIndex, rows: np.ndarray, users: np.ndarray, group: int | None) -> Tensor:
        """Vectors of users of a group after their newest items, [B, d]; arguments as of `score`."""
        item_seq, length, catalogue = self._newest(histories, rows, group)
        return self.model.user_vectors(item_seq, length, catalogue)

    def _newest(self, histories: HistoryIndex, rows: np.ndarray, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """The newest items of histories, [B, L] and [B], and vectors that are enough to read them."""
        newest = histories.newest(rows, self.model.max_seq_length)
        item_seq, length = (torch.from_numpy(part).to(self.model.device) for part in newest)
        return item_seq, length, self.vectors(group, int(newest[0].max(initial=0)))

    def groups_of(self, users: np.ndarray) -> np.ndarray:
        """As in `Scorer`."""
        groups = self.model.group_of(torch.from_numpy(users)) if self.n_groups else None
        return np.full(len(users), -1) if groups is None else groups.numpy()

    @torch.no_grad()
    def nearest_groups(self, histories: HistoryIndex, rows: np.ndarray) -> np.ndarray:
        """As in `Scorer`."""
        if not self.n_groups:
            return np.full(len(rows), -1)
        of_users = self.model.user_vectors(*self._newest(histories, rows, None))
        return self.model.nearest_group(of_users).cpu().numpy()

    def score(self, histories, rows, users, group, candidates) -> Score:
        """As in `Scorer`."""
        of_users = self.user_vectors(histories, rows, users, group)
        wanted, (whose, of, vectors) = self.vectors_for(group), self._of_candidates
        if of is not candidates or whose != wanted:
            vectors = candidates.of(self.vectors(wanted, int(candidates.ids[-1])))
            self._of_candidates = (wanted, candidates, vectors)
        return lambda part: of_users @ vectors[part].T


class MixingScorer(VectorScorer):
    """Scores of all groups, weighted for each user (`group_mixing`): products of vectors that lie side by side.

    The item vectors of all groups stay in memory, whatever `keeps_all` says: each user needs them.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        super().__init__(model, dataset)
        self._side_by_side: Tensor | None = None

    @torch.no_grad()
    def vectors(self, group: int | None, highest: int | None = None) -> Tensor:
        """As in `VectorScorer`; of `ALL_GROUPS` [n_known + n_new, C * d], of which those of a group are columns."""
        if group is None:
            return super().vectors(group, highest)
        found = self._side_by_side
        if found is None:
            found = torch.cat([self.model.catalogue(g, kept=False) for g in range(self.n_groups)], dim=1)
        if self._lacks_new_items(found, highest):
            encode = partial(self.model.item_encoder.new_item_vectors, self.new_items)
            found = torch.cat([found, torch.cat([encode(g) for g in range(self.n_groups)], dim=1)])
        self._side_by_side = found
        return found if group == ALL_GROUPS else found.chunk(self.n_groups, dim=1)[group]

    def vectors_for(self, group: int | None) -> int | None:
        """As in `VectorScorer`."""
        return ALL_GROUPS

    @torch.no_grad()
    def user_vectors(self, histories: HistoryIndex, rows: np.ndarray, users: np.ndarray, group: int | None) -> Tensor:
        """As in `VectorScorer`, [B, C * d]."""
        item_seq, length, catalogue = self._newest(histories, rows, ALL_GROUPS)
        groups = torch.full((len(rows),), -1 if group is None else group)
        weights = self.model.weights_of(torch.from_numpy(users), groups)
        return self.model.mixed_user_vectors(item_seq, length, weights, catalogue)


class RowScorer:
    """Scores of RecBole's interface: `full_sort_predict`, or `predict` of every pair where a model has no other."""

    n_groups = 0
    keeps_all = True
    scores_new_items = False
    new_items: Sequence[str] = ()

    def __init__(self, model: Any, dataset: Any) -> None:
        self.model, self.dataset = model, dataset
        self.takes_histories = model.type == ModelType.SEQUENTIAL
        self.users_at_once = max(1, min(USERS_AT_ONCE, _SCORES_AT_ONCE // dataset.item_num))

    def groups_of(self, users: np.ndarray) -> np.ndarray:
        """As in `Scorer`."""
        return np.full(len(users), -1)

    def nearest_groups(self, histories: HistoryIndex, rows: np.ndarray) -> np.ndarray:
        """As in `Scorer`."""
        return np.full(len(rows), -1)

    def score(self, histories, rows, users, group, candidates) -> Score:
        """As in `Scorer`."""
        scores = self._scores(self._rows(histories, rows, users))
        return partial(_columns, scores, candidates.tensor.to(scores.device))

    def _rows(self, histories: HistoryIndex, rows: np.ndarray, users: np.ndarray) -> Interaction:
        fields = {self.dataset.uid_field: torch.from_numpy(users)}
        if not users.all():
            if getattr(self.model, "names_users", False):
                raise self._knows_no_strangers()
            del fields[self.dataset.uid_field]
        if not self.takes_histories:
            return self.dataset.join(Interaction(fields)).to(self.model.device)
        item_seq, length = histories.newest(rows, self.model.max_seq_length)
        fields[self.model.ITEM_SEQ] = torch.from_numpy(item_seq)
        fields[self.model.ITEM_SEQ_LEN] = torch.from_numpy(length)
        return Interaction(fields).to(self.model.device)

    @torch.no_grad()
    def _scores(self, rows: Interaction) -> Tensor:
        """Scores of all items, [B, n_items]."""
        try:
            try:
                scores = self.model.full_sort_predict(rows)
            except NotImplementedError:
                scores = self._of_pairs(rows)
        except KeyError as error:
            if error.args == (self.dataset.uid_field,):
                raise self._knows_no_strangers() from error
            raise PerPEFTError(
                f"{type(self.model).__name__} reads {error.args[0]} of every interaction, which there is none of for "
                "what is still to be recommended; train a model that reads users, items and histories"
            ) from error
        return scores.view(len(rows), -1)

    def _of_pairs(self, rows: Interaction) -> Tensor:
        n_items, parts = self.dataset.item_num, []
        for start in range(0, len(rows) * n_items, _PAIRS_AT_ONCE):
            pairs = torch.arange(start, min(start + _PAIRS_AT_ONCE, len(rows) * n_items))
            part = rows[(pairs // n_items).to(self.model.device)].cpu()
            part.update(Interaction({self.dataset.iid_field: pairs % n_items}))
            parts.append(self.model.predict(self.dataset.join(part).to(self.model.device)))
        return torch.cat(parts)

    def _knows_no_strangers(self) -> PerPEFTError:
        return PerPEFTError(
            f"{type(self.model).__name__} learns who each user is: it recommends to users of its log alone, not to a "
            "history of somebody else"
        )


def _columns(scores: Tensor, ids: Tensor, part: slice) -> Tensor:
    return scores[:, ids[part]]
