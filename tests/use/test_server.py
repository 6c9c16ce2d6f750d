"""The verb `serve`, run for real on the loopback: answers, wrong requests, many clients, and how it ends."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_perpeft.cli import serve as verb
from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use import service as service_module
from recbole_perpeft.use.recommend import Recommender
from recbole_perpeft.use.service import Service
from support.answers import rows_of

needs_packages = pytest.mark.skipif(not verb.has_packages(), reason="fastapi and uvicorn are not installed")
TOO_LARGE = b" " * (service_module.MAX_BODY_BYTES + 1)


def ask(port, method, path, body=None, **headers):
    """Status and what the JSON of an answer says."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(
            method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), headers
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def lists(port, **request):
    status, answer = ask(port, "POST", "/recommend", request)
    assert status == 200, answer
    return answer["lists"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def serving(recommender, monkeypatch):
    """Runs the verb in this thread and what asks in another, and ends the verb with a signal after that."""
    monkeypatch.setattr(Recommender, "from_file", lambda *_, **__: recommender)

    def serving(asks, ending=signal.SIGINT):
        port, has_ended = free_port(), threading.Event()

        def wait():
            for _ in range(400):
                if has_ended.is_set():
                    break
                try:
                    return ask(port, "GET", "/health")
                except ConnectionRefusedError:
                    time.sleep(0.05)
            raise AssertionError("the server does not answer")

        def ask_and_end():
            try:
                wait()
                return asks(port)
            finally:
                if not has_ended.is_set():
                    os.kill(os.getpid(), ending)

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask_and_end)
            status = main(["serve", "--run=somewhere", f"--port={port}"])
            has_ended.set()
            assert status == 0
            return answer.result()

    return serving


@needs_packages
def test_what_is_asked_is_answered_and_what_is_wrong_is_told(recommender, serving, capsys):
    user, item = recommender.all_users()[0], str(recommender.item_tokens[1])

    def asks(port):
        assert lists(port, users=[user], k=3) == rows_of(recommender.for_users([user], k=3), "user_id")
        assert lists(port, histories=[[item]], k=3) == rows_of(recommender.for_histories([[item]], k=3), "row")
        status, found = ask(port, "GET", f"/items/{quote(item, '')}/similar?group=1&k=2")
        assert status == 200 and found["items"] == service_module.Service(recommender).similar(item, 1, 2)
        assert [each["group"] for each in ask(port, "GET", "/groups")[1]["groups"]] == [0, 1]
        assert ask(port, "GET", "/health")[1]["n_groups"] == 2
        routes = ask(port, "GET", "/openapi.json")[1]["paths"]
        body = routes["/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]) == service_module.KEYS
        for method, path, body, expected, message in (
            ("POST", "/recommend", b"no json", 400, "a request is JSON"),
            ("POST", "/recommend", b"\xff", 400, "a request is JSON"),
            ("POST", "/recommend", b"[" * 10**6, 400, "a request is JSON"),
            ("POST", "/recommend", TOO_LARGE, 400, "at most 1,048,576 bytes"),
            ("POST", "/recommend", {"users": ["nobody"]}, 400, "nobody"),
            ("POST", "/recommend", {"users": ["\ud800"]}, 400, "\\ud800"),
            ("POST", "/recommend", {"histories": [["\ud800"]]}, 400, "there is no item"),
            ("GET", "/items/nothing/similar", None, 400, "no item 'nothing'"),
            ("GET", "/items/%ff/similar", None, 400, "no item"),
            ("GET", f"/items/{item}/similar?k=x", None, 400, "k is 'x'"),
            ("GET", f"/items/{item}/similar?k=9999", None, 400, "k is 9999"),
            ("GET", "/nothing", None, 404, "GET /nothing: Not Found"),
            ("GET", "/recommend", None, 405, "Method Not Allowed"),
        ):
            status, answer = ask(port, method, path, body)
            assert status == expected and list(answer) == ["error"] and message in answer["error"], (path, answer)
        # What is announced is refused before it is sent.
        announced = ask(port, "POST", "/recommend", b"", **{"Content-Length": "999999999"})
        assert announced[0] == 400 and "at most" in announced[1]["error"]
        return port

    port = serving(asks)
    printed = capsys.readouterr()
    assert f"http://127.0.0.1:{port} answers" in printed.out and item not in printed.out + printed.err


@needs_packages
def test_many_clients_at_once_each_get_their_own_lists(recommender, serving):
    users = recommender.all_users()[:64]
    expected = {row["user_id"]: row for row in rows_of(recommender.for_users(users, k=5), "user_id")}

    def one(port, user):
        return all(lists(port, users=[user], k=k) == [cut(expected[user], k)] for k in (5, 1))

    def cut(row, k):
        return row | {"items": row["items"][:k]}

    def asks(port):
        with ThreadPoolExecutor(64) as pool:
            return list(pool.map(one, [port] * 64, users))

    assert serving(asks) == [True] * 64


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@needs_packages
def test_whatever_is_sent_is_answered_or_told(serving, recommender):
    texts = st.sampled_from([*recommender.all_users()[:2], *recommender.item_tokens[:3].tolist()]) | st.text(
        max_size=3
    )
    values = JSON | st.lists(texts, max_size=4) | st.lists(st.lists(texts, max_size=4), max_size=4)
    bodies = JSON | st.dictionaries(st.sampled_from([*service_module.KEYS]), values | st.integers(-1, 1001))

    def asks(port):
        @settings(max_examples=20, database=None)
        @given(bodies)
        def any_body(body):
            status, answer = ask(port, "POST", "/recommend", body)
            assert status == 200 and "lists" in answer or status == 400 and list(answer) == ["error"]

        any_body()

    serving(asks)


@needs_packages
def test_requests_at_work_are_answered_when_it_is_told_to_end(serving, recommender, monkeypatch):
    begun, may_end, ends = threading.Event(), threading.Event(), []
    compute = service_module.compute

    def slow(*arguments):
        begun.set()
        assert may_end.wait(20)
        return compute(*arguments)

    monkeypatch.setattr(service_module, "compute", slow)
    user = recommender.all_users()[0]
    before = signal.signal(signal.SIGTERM, lambda *_: ends.append("ended"))
    with ThreadPoolExecutor(3) as pool:

        def asks(port):
            answers = [pool.submit(lists, port, users=[user], k=k) for k in (1, 2, 3)]
            assert begun.wait(20)
            threading.Timer(0.3, may_end.set).start()
            return answers

        try:
            answers = serving(asks, signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert [len(answer.result()[0]["items"]) for answer in answers] == [1, 2, 3]
    assert ends == ["ended"], "what called it learns that it was a signal"


@needs_packages
def test_an_address_that_cannot_be_had_is_told_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(Recommender, "from_file", lambda *_, **__: 1 / 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--run=somewhere", f"--port={port}"]) == 2
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    assert main(["serve", "--run=somewhere", "--host=no.such.host.invalid"]) == 2
    assert "cannot listen at no.such.host.invalid" in capsys.readouterr().err


def test_without_its_packages_and_with_a_wrong_port(capsys, monkeypatch):
    monkeypatch.setattr(verb, "PACKAGES", ("no_package_of_this_name",))
    assert main(["serve", "--run=somewhere"]) == 2
    assert "pip install 'recbole-perpeft[serve]'" in capsys.readouterr().err
    assert main(["serve", "--run=somewhere", "--port=0"]) == 2


@needs_packages
def test_whoever_asks_for_health_does_not_wait_for_similar_items(recommender, serving, monkeypatch):
    monkeypatch.setattr(service_module, "MAX_SIMILAR", 3)
    item, entered, may_go_on = str(recommender.item_tokens[1]), threading.Semaphore(0), threading.Event()
    whole = Service._similar

    def slow(self, *arguments):
        entered.release()
        may_go_on.wait(20)
        return whole(self, *arguments)

    monkeypatch.setattr(Service, "_similar", slow)

    def asks(port):
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(ask, port, "GET", f"/items/{item}/similar") for _ in range(3)]
            for _ in waiting:
                assert entered.acquire(timeout=20)
            assert ask(port, "GET", f"/items/{item}/similar")[0] == 503
            found = [ask(port, "GET", path)[0] for path in ("/health", "/groups")]
            may_go_on.set()
            return found, [answer.result()[0] for answer in waiting]

    assert serving(asks) == ([200, 200], [200, 200, 200])


@needs_packages
def test_two_servers_that_took_one_port_are_told(recommender, monkeypatch, capsys):
    monkeypatch.setattr(Recommender, "from_file", lambda *_, **__: recommender)
    server, port = pytest.importorskip("recbole_perpeft.use.server"), free_port()
    first = server.bound("127.0.0.1", port)
    second = server.bound("127.0.0.1", port)  # neither listens yet
    with first, second, pytest.raises(PerPEFTError, match=f"cannot listen at 127.0.0.1, port {port}"):
        first.listen()
        server.serve(Service(recommender), second)
    with pytest.raises(PerPEFTError, match="cannot listen at"):
        server.bound("x" * 64 + ".org", 80)
