"""Requests one by one, many at once, wrong ones and too large ones."""

import logging
import threading

import numpy as np
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use import service as service_module
from recbole_perpeft.use.recommend import Wanted
from recbole_perpeft.use.service import MAX_HISTORY, MAX_K, MAX_LISTS, Service, TooBusyError
from support.answers import rows_of


def test_a_service_answers_as_the_recommender(recommender, caplog):
    users, items = recommender.all_users()[:3], recommender.item_tokens[1:8].tolist()
    histories = [items[:4], items[4:]]
    with caplog.at_level(logging.DEBUG), Service(recommender) as service:
        answer = service.submit({"users": users, "histories": histories, "k": 4, "include_seen": True}).result()
        expected = rows_of(recommender.for_users(users, k=4, exclude_seen=False), "user_id")
        assert answer == expected + rows_of(recommender.for_histories(histories, k=4, exclude_seen=False), "row")
        groups = np.bincount(recommender.model.user_group[1:].numpy()).tolist()
        assert service.groups() == [{"group": group, "n_users": size} for group, size in enumerate(groups)]
        assert service.health()["n_groups"] == 2 and service.health()["model"] == "PerPEFT"
    assert not any(item in caplog.text for item in items), "no history in the log"


def test_similar_items_are_those_of_the_highest_cosine(recommender):
    token = recommender.item_tokens[5]
    for group in (None, 1):
        vectors = torch.nn.functional.normalize(recommender.model.catalogue(group), dim=1)
        cosine = (vectors @ vectors[5]).detach()
        cosine[[0, 5]] = -2
        found = Service(recommender).similar(token, group, 3)
        assert [each["item_id"] for each in found] == recommender.item_tokens[cosine.topk(3).indices].tolist()
        assert [each["score"] for each in found] == pytest.approx(cosine.topk(3).values.tolist(), abs=1e-5)


def test_requests_that_come_while_lists_are_computed_are_computed_together(recommender, monkeypatch):
    begun, may_end, sizes = threading.Event(), threading.Event(), []
    compute = service_module.compute

    def slow(recommender, people, wanted):
        sizes.append(len(people.names))
        begun.set()
        may_end.wait(20)
        return compute(recommender, people, wanted)

    monkeypatch.setattr(service_module, "compute", slow)
    users = recommender.all_users()[:6]
    with Service(recommender) as service:
        first = service.submit({"users": users[:1]})
        assert begun.wait(20)
        others = [service.submit({"users": [user], "k": k}) for k, user in enumerate(users[1:], start=1)]
        other = service.submit({"users": users[:1], "include_seen": True})
        may_end.set()
        answers = [future.result(20) for future in [first, *others, other]]
    assert sizes == [1, 5, 1]
    for k, (user, answer) in enumerate(zip(users[1:], answers[1:-1], strict=True), start=1):
        assert answer == rows_of(recommender.for_users([user], k=k), "user_id")


def test_an_error_of_one_batch_does_not_end_the_service(recommender, monkeypatch):
    user = recommender.all_users()[0]
    with Service(recommender) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service_module, "compute", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                service.submit({"users": [user]}).result(20)
        assert len(service.submit({"users": [user]}).result(20)) == 1


def test_a_request_that_cannot_be_served_fails_alone(recommender, monkeypatch):
    """Also where it is computed together with others."""
    first, second, bad = recommender.all_users()[:3]
    begun, goes_on, compute = threading.Event(), threading.Event(), service_module.compute

    def fails_for_one(recommender, people, wanted):
        begun.set()
        goes_on.wait(20)
        if bad in people.names:
            raise PerPEFTError("not this one")
        return compute(recommender, people, wanted)

    monkeypatch.setattr(service_module, "compute", fails_for_one)
    with Service(recommender) as service:
        answers = [service.submit({"users": [first]})]
        assert begun.wait(20)
        answers += [service.submit({"users": [user]}) for user in (first, bad, second)]
        goes_on.set()
        found = [answer.exception(20) for answer in answers]
    assert [error is not None for error in found] == [False, False, True, False]


WRONG = [
    ([], "a JSON object"),
    ({}, "number of users and histories is 0"),
    ({"users": "u"}, "a list of user ids"),
    ({"users": [1]}, "a list of user ids"),
    ({"users": ["nobody"]}, "not in the data set: nobody"),
    ({"users": ["u"] * (MAX_LISTS + 1)}, f"from 1 to {MAX_LISTS}"),
    ({"histories": ["i1"]}, "a list of lists"),
    ({"histories": [["no item"]]}, "there is no item 'no item'"),
    ({"histories": [[]]}, "length of a history is 0"),
    ({"histories": [["i"] * (MAX_HISTORY + 1)]}, f"from 1 to {MAX_HISTORY}"),
    ({"histories": [["i"]], "k": MAX_K + 1}, f"from 1 to {MAX_K}"),
    ({"histories": [["i"]], "k": True}, "k is True"),
    ({"histories": [["i"]], "include_seen": 1}, "true or false"),
    ({"user": ["u"]}, "a request has no 'user'"),
]


def test_wrong_requests_are_refused_before_they_wait(recommender):
    service = Service(recommender)
    for body, message in WRONG:
        with pytest.raises(PerPEFTError, match=message):
            service.submit(body)
    for item, group, message in (("x", None, "no item 'x'"), ("", 9, "no group 9 among 2")):
        with pytest.raises(PerPEFTError, match=message):
            service.similar(item, group)


def test_more_requests_than_there_is_room_for(recommender, monkeypatch):
    monkeypatch.setattr(service_module, "MAX_WAITING", 2)
    service, body = Service(recommender), {"users": recommender.all_users()[:1]}
    service.submit(body), service.submit(body)  # nobody works yet
    with pytest.raises(TooBusyError, match="2 requests wait"):
        service.submit(body)


def test_what_every_request_may_get_is_found_once(recommender):
    everything = recommender.candidates(Wanted(3))
    assert recommender.candidates(Wanted(7)) is everything
    item = recommender.item_tokens[1]
    assert recommender.candidates(Wanted(3, exclude=[item])).ids.tolist() == everything.ids[1:].tolist()
    assert recommender.candidates(Wanted(3, candidates=[item])).ids.tolist() == [1]
    assert recommender.candidates(Wanted(3, include_new_items=True)) is not everything
    with pytest.raises(PerPEFTError, match="k is 0"):
        recommender.candidates(Wanted(0))
