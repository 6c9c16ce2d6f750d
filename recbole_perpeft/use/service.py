"""Lists for requests that come one by one: checked, bounded, and those that come at once computed together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import HistoryIndex
from recbole_perpeft.use.lists import compute
from recbole_perpeft.use.recommend import People, Recommender, Wanted
from recbole_perpeft.use.topk import best_items

MAX_BODY_BYTES = 2**20
MAX_LISTS, MAX_K, MAX_HISTORY, MAX_WAITING = 256, 1000, 1000, 1024
MAX_SIMILAR = 32  # requests for similar items at a time, each of which holds a thread
_AT_ONCE = 1024  # lists that are computed together
_SWITCHES = ("include_seen", "include_new_items")
KEYS = {"users", "histories", "k", *_SWITCHES}


class TooBusyError(PerPEFTError):
    """More requests wait than there is room for."""


class Request(NamedTuple):
    """A checked request.

    Attributes:
        users: tokens of users of the log.
        histories: item ids of anybody, oldest first.
        k: length of a list.
        include_seen: as in `Wanted`, turned round.
        include_new_items: as in `Wanted`.
    """

    users: list[str]
    histories: list[np.ndarray]
    k: int
    include_seen: bool
    include_new_items: bool


@dataclass(frozen=True)
class _Waiting:
    request: Request
    answer: Future[list[dict[str, Any]]]


class Service:
    """Answers requests in a thread of its own; use it as a context.

    While lists are computed, requests gather, which are then computed together. Nothing of a request is written down.

    Args:
        recommender: makes the lists.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._lengths: dict[int | None, Tensor] = {}
        self._places = threading.BoundedSemaphore(MAX_SIMILAR)
        self._at_work = threading.Lock()  # a model is asked by one thread at a time
        self._worker = threading.Thread(target=self._work, name="lists", daemon=True)

    def __enter__(self) -> Service:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._worker.join()

    def submit(self, body: Any) -> Future[list[dict[str, Any]]]:
        """Ask for lists.

        Args:
            body: what JSON makes of a request: `users` (ids of the log), `histories` (lists of item ids, oldest
                first), `k`, `include_seen`, `include_new_items`.

        Returns:
            In time, a list for each user and then for each history: `user_id` or `row`, `group` (None for none), and
            `items`, each with `item_id` and `score`.

        Raises:
            PerPEFTError: the request is wrong or too large.
            TooBusyError: too many wait already.
        """
        waiting = _Waiting(self._checked(body), Future())
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise TooBusyError(f"{MAX_WAITING} requests wait already; try again later") from None
        return waiting.answer

    def similar(self, item: str, group: int | None = None, k: int = 10) -> list[dict[str, Any]]:
        """Items whose vectors point where that of an item does.

        Args:
            item: its id.
            group: in the eyes of which group; None for everybody.
            k: how many.

        Returns:
            `item_id` and `score` (the cosine) of each.

        Raises:
            PerPEFTError: there is no such item or group, or the model has no item vectors.
            TooBusyError: too many wait already.
        """
        scorer = self.recommender.scorer
        _check_range("k", k, 1, MAX_K)
        if not hasattr(scorer, "vectors"):
            raise PerPEFTError(f"{type(self.recommender.model).__name__} has no item vectors that could be compared")
        if group is not None and not 0 <= group < scorer.n_groups:
            raise PerPEFTError(f"there is no group {group} among {scorer.n_groups}")
        ids = self._ids([item])
        if not self._places.acquire(blocking=False):
            raise TooBusyError(f"{MAX_SIMILAR} requests for similar items wait already; try again later")
        try:
            return self._similar(item, ids, group, k)
        finally:
            self._places.release()

    def _similar(self, item: str, ids: np.ndarray, group: int | None, k: int) -> list[dict[str, Any]]:
        scorer: Any = self.recommender.scorer
        with self._at_work, torch.no_grad():
            candidates = self.recommender.candidates(Wanted(k, exclude=[item]))
            vectors = scorer.vectors(group)
            if group not in self._lengths:
                self._lengths[group] = vectors.norm(dim=1).clamp_min(1e-12)
            lengths = candidates.of(self._lengths[group])
            of_item, others = vectors[ids] / self._lengths[group][ids].unsqueeze(1), candidates.of(vectors)
            nothing = np.empty(0, np.int64)
            found = best_items(
                lambda part: of_item @ others[part].T / lengths[part], candidates, (nothing, nothing), k
            )
        return self._items(found[0][0], found[1][0])

    def groups(self) -> list[dict[str, int]]:
        """Number and size of each group of users."""
        if not self._n_groups:
            return []
        sizes = torch.bincount(self.recommender.model.user_group + 1, minlength=self._n_groups + 1)[1:]
        return [{"group": group, "n_users": size} for group, size in enumerate(sizes.tolist())]

    def health(self) -> dict[str, Any]:
        """What is served."""
        recommender = self.recommender
        return {
            "status": "ok",
            "model": type(recommender.model).__name__,
            "dataset": recommender.dataset.dataset_name,
            "n_items": recommender.n_known - 1,
            "n_groups": self._n_groups,
        }

    @property
    def _n_groups(self) -> int:
        return self.recommender.scorer.n_groups

    def _checked(self, body: Any) -> Request:
        if not isinstance(body, Mapping):
            raise PerPEFTError("a request is a JSON object with users or histories")
        if unknown := sorted(map(str, body.keys() - KEYS)):
            raise PerPEFTError(f"a request has no {unknown[0]!r}; it may have {', '.join(sorted(KEYS))}")
        users, histories = (body.get(name, []) for name in ("users", "histories"))
        k, switches = body.get("k", 10), [body.get(name, False) for name in _SWITCHES]
        if not _are_texts(users):
            raise PerPEFTError("users is a list of user ids, which are texts")
        if not isinstance(histories, list) or not all(map(_are_texts, histories)):
            raise PerPEFTError("histories is a list of lists of item ids, which are texts")
        if not all(isinstance(switch, bool) for switch in switches):
            raise PerPEFTError(f"{' and '.join(_SWITCHES)} are true or false")
        _check_range("k", k, 1, MAX_K)
        _check_range("the number of users and histories", len(users) + len(histories), 1, MAX_LISTS)
        for history in histories:
            _check_range("the length of a history", len(history), 1, MAX_HISTORY)
        if users:
            self.recommender.people_of_log(users)
        ids = [self._ids(history) for history in histories]
        if ids:
            self._people_of(ids)
        request = Request(users, ids, k, *switches)
        self.recommender.candidates(_wanted(request, k))
        return request

    def _ids(self, items: Sequence[str]) -> np.ndarray:
        ids = self.recommender.item_ids(items)
        if not ids.all():
            unknown = next(item for item, known in zip(items, ids, strict=True) if not known)
            raise PerPEFTError(f"there is no item {unknown!r}")
        return ids

    def _people_of(self, histories: Sequence[np.ndarray]) -> People:
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        index = HistoryIndex.from_pairs(rows, np.concatenate(histories), len(histories))
        return self.recommender.people_of_histories(index)

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch, n_lists = [self._waiting.get()], 0
            while batch[-1] is not None and n_lists < _AT_ONCE:
                n_lists += len(batch[-1].request.users) + len(batch[-1].request.histories)
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            is_open = batch[-1] is not None
            alike: dict[tuple[bool, bool], list[_Waiting]] = {}
            for waiting in batch:
                if waiting is not None and waiting.answer.set_running_or_notify_cancel():
                    alike.setdefault(waiting.request[-2:], []).append(waiting)
            for together in alike.values():
                self._answer(together)

    def _answer(self, together: Sequence[_Waiting]) -> None:
        """Compute the lists of requests that want the same."""
        requests = [waiting.request for waiting in together]
        try:
            with self._at_work:
                wanted = _wanted(requests[0], max(request.k for request in requests))
                users = [user for request in requests for user in request.users]
                histories = [history for request in requests for history in request.histories]
                of_users = iter(self._lists(self.recommender.people_of_log(users), wanted) if users else [])
                of_histories = iter(self._lists(self._people_of(histories), wanted) if histories else [])
            answers = [
                [{"user_id": user} | _cut(next(of_users), request.k) for user in request.users]
                + [{"row": row} | _cut(next(of_histories), request.k) for row in range(len(request.histories))]
                for request in requests
            ]
        except Exception as error:  # whoever waits is told, and the next are served
            if len(together) > 1:  # the fault may be of one request alone
                for waiting in together:
                    self._answer([waiting])
            else:
                together[0].answer.set_exception(error)
            return
        for waiting, answer in zip(together, answers, strict=True):
            waiting.answer.set_result(answer)

    def _lists(self, people: People, wanted: Wanted) -> list[dict[str, Any]]:
        lists = compute(self.recommender, people, wanted)
        return [
            {"group": None if group < 0 else int(group), "items": self._items(items, scores)}
            for items, scores, group in zip(*lists, strict=True)
        ]

    def _items(self, items: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        tokens = self.recommender.item_tokens[items[items >= 0]].tolist()
        return [{"item_id": token, "score": float(score)} for token, score in zip(tokens, scores, strict=False)]


def _wanted(request: Request, k: int) -> Wanted:
    return Wanted(k, not request.include_seen, request.include_new_items)


def _cut(answer: dict[str, Any], k: int) -> dict[str, Any]:
    return answer | {"items": answer["items"][:k]}


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _check_range(what: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PerPEFTError(f"{what} is {value!r}; it is a whole number from {least} to {most}")
