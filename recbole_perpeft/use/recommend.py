"""Top-k lists from a trained model, for users of the training data and for histories of anybody else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.history import HistoryIndex, union_of
from recbole_perpeft.runs.run import load
from recbole_perpeft.use.approximate import Approximation
from recbole_perpeft.use.scorers import scorer_of
from recbole_perpeft.use.topk import Candidates, best_items

_SHOWN = 10


@dataclass(frozen=True)
class People:
    """Who gets lists, a row each.

    Attributes:
        names: How each is called in the lists, [n].
        column: What the names are: `user_id`, or `row` of histories without users.
        users: Their ids in the log, int64 [n]; 0 for others.
        histories: Items of somebody, by row.
        rows: Which of these rows each has, int64 [n].
        of_log: Whether the histories are those of the log, whose users have groups.
    """

    names: np.ndarray
    column: str
    users: np.ndarray
    histories: HistoryIndex
    rows: np.ndarray
    of_log: bool

    def without_names(self) -> People:
        """What lists are computed of, whoever it is."""
        return replace(self, names=np.empty(0, dtype=object))


class Wanted(NamedTuple):
    """What is wanted of lists.

    Attributes:
        k: Length of a list.
        exclude_seen: Whether items of the history are left out.
        include_new_items: Whether items that have content but no interactions are candidates too.
        candidates: Item tokens that compete; None for all.
        exclude: Item tokens that do not.
        min_score: Lower scores are left out.
    """

    k: int = 10
    exclude_seen: bool = True
    include_new_items: bool = False
    candidates: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    min_score: float | None = None


class Batch(NamedTuple):
    """People of one group.

    Attributes:
        rows: Rows of `People`, int64 [B].
        group: Their group; -1 for none.
    """

    rows: np.ndarray
    group: int


class Part(NamedTuple):
    """Lists of a batch.

    Attributes:
        items: Item ids, best first, int64 [B, k]; -1 after the last.
        scores: float32 [B, k].
    """

    items: np.ndarray
    scores: np.ndarray


class Lists(NamedTuple):
    """Lists of all people.

    Attributes:
        items: As in `Part`, int32 [n, k].
        scores: float32 [n, k].
        groups: int32 [n].
    """

    items: np.ndarray
    scores: np.ndarray
    groups: np.ndarray

    @classmethod
    def empty(cls, n: int, k: int) -> Lists:
        """In memory."""
        return cls(*(np.empty(shape, dtype) for shape, dtype in cls.kinds(n, k)))

    @staticmethod
    def kinds(n: int, k: int) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and type of the arrays."""
        return ((n, k), "int32"), ((n, k), "float32"), ((n,), "int32")

    def put(self, batch: Batch, part: Part) -> None:
        """Fill in the lists of a batch."""
        self.items[batch.rows], self.scores[batch.rows], self.groups[batch.rows] = *part, batch.group


class Recommender:
    """Recommends items by their tokens.

    Users of the training data are scored by their own group, or by all with `group_mixing`. A history of anybody else
    goes to the group with the nearest centroid (by the global module). Items with content but without interactions
    can be recommended by models that read content, and may stand in histories: their vector is the content part alone.

    Args:
        model: A trained model, of this package or of RecBole.
        dataset: Its data set.
        history: All interactions of the users, in time order; None where the log is not at hand.
        source: Tells the model from others, where lists are gone on with.
    """

    def __init__(self, model: Any, dataset: Any, history: HistoryIndex | None, source: str = "") -> None:
        self.source = source
        self.model, self.dataset = model.eval(), dataset
        self.history = history
        self.scorer = scorer_of(model, dataset)
        self._users = pd.Index(dataset.field2id_token[dataset.uid_field].astype(object))
        known = dataset.field2id_token[dataset.iid_field]
        self.n_known = len(known)
        self.item_tokens = np.array([*known, *self.scorer.new_items])
        self._items = pd.Index(self.item_tokens.astype(object))
        self._everything: dict[bool, Candidates] = {}
        self.approximation: Approximation | None = None

    @classmethod
    def from_file(
        cls, model_file: str | Path, config_dict: Mapping[str, Any] | None = None, needs_log: bool = True
    ) -> Recommender:
        """Reads a run, and the data set it was trained on.

        Args:
            model_file: The run folder, or a checkpoint in it.
            config_dict: Settings to change, such as `data_path` where the data have moved.
            needs_log: Whether a missing log is an error. Without the log anybody gets lists who has a history.
        """
        _, model, dataset, *loaders = load(model_file, config_dict, needs_log)
        has_log = not getattr(dataset, "is_without_log", False)
        path = Path(model_file)
        file = path / "best.pth" if path.is_dir() else path
        source = f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}"
        return cls(model, dataset, union_of([one._dataset for one in loaders]) if has_log else None, source)

    def user_ids(self, users: Sequence[str]) -> np.ndarray:
        """Ids of users in the log, int64 [n]; 0 for others."""
        return np.maximum(self._users.get_indexer(pd.Index(users, dtype=object)), 0)

    def item_ids(self, items: Sequence[str]) -> np.ndarray:
        """Ids of items, those without interactions after the known ones, int64 [n]; 0 for others."""
        return np.maximum(self._items.get_indexer(pd.Index(items, dtype=object)), 0)

    def all_users(self) -> list[str]:
        """Tokens of all users of the log."""
        return self._users[self._history.users].tolist()

    @property
    def _history(self) -> HistoryIndex:
        if self.history is None:
            raise PerPEFTError(
                f"{self.dataset.dataset_path}/{self.dataset.dataset_name}.inter is missing, so that nobody knows what "
                "users had: set --data_path to the folder of the data set, or give histories instead of users"
            )
        return self.history

    def people_of_log(self, users: Sequence[str]) -> People:
        """Users of the training data.

        Raises:
            PerPEFTError: A user is not in the data set, or has nothing in it that a sequential model could read; such
                users need a history.
        """
        history, ids = self._history, self.user_ids(users)
        unknown = np.asarray(users, dtype=object)[ids == 0]
        if len(unknown):
            raise PerPEFTError(
                f"{len(unknown)} users are not in the data set: {', '.join(map(str, unknown[:_SHOWN]))}; give their "
                "history instead"
            )
        without = ids[history.lengths[ids] == 0] if self.scorer.takes_histories else ids[:0]
        if len(without):
            raise PerPEFTError(
                f"{len(without)} users have no interactions that the model could read: "
                f"{', '.join(self._users[without[:_SHOWN]])}; give their history instead"
            )
        return People(np.asarray(users, dtype=object), "user_id", ids, history, ids, True)

    def people_of_histories(self, histories: HistoryIndex, names: Sequence[str] | None = None) -> People:
        """Anybody with a history.

        Args:
            histories: Item ids as of `item_ids`, oldest first, at least one each.
            names: User tokens, which need not be in the log; by default people are called by their row.

        Raises:
            PerPEFTError: The model cannot serve histories.
        """
        if not self.scorer.takes_histories:
            raise PerPEFTError(
                f"{type(self.model).__name__} does not read histories: it recommends to users of its log alone, by "
                "what it has learnt of each; a sequential model serves anybody"
            )
        rows = np.arange(histories.n_users)
        users = np.zeros_like(rows) if names is None else self.user_ids(names)
        called = rows if names is None else np.asarray(names, dtype=object)
        return People(called, "row" if names is None else "user_id", users, histories, rows, False)

    def for_users(self, users: Sequence[str], k: int = 10, **options) -> pd.DataFrame:
        """Top-k lists of users of the training data, from all their interactions.

        Args:
            users: User tokens.
            k: Length of a list.
            options: As in `Wanted`.

        Returns:
            Columns user_id, rank (from 1), item_id, score, group.

        Raises:
            PerPEFTError: A user is not in the data set; such users need `for_histories`.
        """
        return self._frame(self.people_of_log(users), Wanted(k, **options))

    def for_histories(self, histories: Sequence[Sequence[str]], k: int = 10, **options) -> pd.DataFrame:
        """Top-k lists for histories of users who need not have been in training.

        Args:
            histories: Item tokens of each user, oldest first; at least one each.
            k: Length of a list.
            options: As in `Wanted`.

        Returns:
            Columns row (place in `histories`), rank (from 1), item_id, score, group.

        Raises:
            PerPEFTError: A history is empty or names an item without content, or the model reads no histories.
        """
        return self._frame(self.people_of_lists(histories), Wanted(k, **options))

    def people_of_lists(self, histories: Sequence[Sequence[str]]) -> People:
        """Anybody with a history in item tokens; arguments and errors as of `for_histories`."""
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        tokens = [item for history in histories for item in history]
        rows, items = np.repeat(np.arange(len(histories)), lengths), self.item_ids(tokens)
        for row in [*rows[items == 0][:1], *np.flatnonzero(lengths == 0)[:1]]:
            unknown = [token for token, item, of in zip(tokens, items, rows, strict=True) if of == row and not item]
            reason = f"items that are not in the data set: {', '.join(unknown[:_SHOWN])}" if unknown else "no item"
            raise PerPEFTError(f"history {row} has {reason}")
        return self.people_of_histories(HistoryIndex.from_pairs(rows, items, len(histories)))

    def search_approximately(self) -> Approximation:
        """Let lists be found by approximate search from now on.

        Returns:
            What finds them, and reports how well.

        Raises:
            PerPEFTError: usearch is not installed, or the model has no item vectors.
        """
        self.approximation = Approximation(self.scorer, type(self.model).__name__)
        return self.approximation

    def _frame(self, people: People, wanted: Wanted) -> pd.DataFrame:
        wanted = self.bounded(wanted)
        lists = Lists.empty(len(people.names), wanted.k)
        plan = self.plan(people)
        for batch, part in zip(plan, self.lists(people, wanted, plan), strict=True):
            lists.put(batch, part)
        return self.table(people, lists, slice(None))

    def plan(self, people: People) -> list[Batch]:
        """Batches of people of one group each, one group after the other."""
        groups = self.scorer.groups_of(people.users) if people.of_log else np.full(len(people.rows), -1)
        # Nobody has put these into a group: strangers, and users of the log without train items.
        unknown = np.flatnonzero(groups < 0) if self.scorer.n_groups else np.arange(0)
        for start in range(0, len(unknown), self.scorer.users_at_once):
            part = unknown[start : start + self.scorer.users_at_once]
            groups[part] = self.scorer.nearest_groups(people.histories, people.rows[part])
        return [
            Batch(rows[start : start + self.scorer.users_at_once], group)
            for group in np.unique(groups).tolist()
            for rows in [np.flatnonzero(groups == group)]
            for start in range(0, len(rows), self.scorer.users_at_once)
        ]

    def lists(self, people: People, wanted: Wanted, plan: Sequence[Batch]) -> Iterator[Part]:
        """The lists of each batch of a plan, or of a part of it.

        Raises:
            PerPEFTError: Nothing can be recommended.
        """
        candidates = self.candidates(wanted)
        return (self.lists_of(people, wanted, batch, candidates) for batch in plan)

    def lists_of(self, people: People, wanted: Wanted, batch: Batch, candidates: Candidates) -> Part:
        """The lists of a batch.

        Args:
            people: Whose.
            wanted: What is wanted.
            batch: Which of them.
            candidates: Those of `wanted`; the same object for all batches, as what is computed of it is kept.
        """
        of = people.rows[batch.rows]
        group = None if batch.group < 0 else batch.group
        seen = people.histories.rows(of) if wanted.exclude_seen else (np.empty(0, np.int64), np.empty(0, np.int64))
        competes = candidates.place[seen[1]] >= 0
        seen = seen[0][competes], seen[1][competes]
        if self.approximation is None:
            score = self.scorer.score(people.histories, of, people.users[batch.rows], group, candidates)
            items, scores = best_items(score, candidates, seen, wanted.k)
        else:
            of_users = self.approximation.user_vectors(people.histories, of, people.users[batch.rows], group)
            items, scores = self.approximation.best(of_users, group, candidates, seen, wanted.k)
        if wanted.min_score is not None:
            items = np.where(scores >= wanted.min_score, items, -1)
        return Part(items, scores)

    def bounded(self, wanted: Wanted) -> Wanted:
        """The same with lists that are no longer than there are candidates; raises as `candidates`."""
        return wanted._replace(k=min(wanted.k, len(self.candidates(wanted).ids)))

    def candidates(self, wanted: Wanted) -> Candidates:
        """Items that may be recommended.

        Raises:
            PerPEFTError: There is none, or k is below 1.
        """
        if wanted.k < 1:
            raise PerPEFTError(f"k is {wanted.k}: a list has at least one item")
        if wanted.include_new_items and not self.scorer.scores_new_items:
            raise PerPEFTError(
                f"include_new_items: this {type(self.model).__name__} scores the items of its log alone; PerPEFT, "
                "GlobalPEFT, IISAN and MoRec score others by their content, if they read any"
            )
        is_everything = wanted.candidates is None and not len(wanted.exclude)
        if is_everything and wanted.include_new_items in self._everything:
            return self._everything[wanted.include_new_items]
        competes = np.zeros(len(self.item_tokens), dtype=bool)
        competes[slice(1, None) if wanted.candidates is None else self.item_ids(wanted.candidates)] = True
        competes[self.item_ids(wanted.exclude)] = False
        competes[0] = False
        if not wanted.include_new_items:
            n_new = int(competes[self.n_known :].sum()) if wanted.candidates is not None else 0
            if n_new:
                LOGGER.warning(f"{n_new} candidates have no interactions and are left out; see include_new_items")
            competes[self.n_known :] = False
        if not competes.any():
            raise PerPEFTError(
                "no item is left that could be recommended: look at the candidates and what is excluded"
            )
        candidates = Candidates(np.flatnonzero(competes), len(self.item_tokens))
        if is_everything:  # a server asks for them with every request
            self._everything[wanted.include_new_items] = candidates
        return candidates

    def table(self, people: People, lists: Lists, part: slice) -> pd.DataFrame:
        """Lists of some people as a table.

        Returns:
            Columns user_id or row, rank (from 1), item_id, score, group.
        """
        items = lists.items[part]
        row, place = np.nonzero(items >= 0)
        return pd.DataFrame(
            {
                people.column: people.names[part][row],
                "rank": place + 1,
                "item_id": self.item_tokens[items[row, place]],
                "score": lists.scores[part][row, place],
                "group": lists.groups[part][row].astype(np.int64),
            }
        )
