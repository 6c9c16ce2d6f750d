"""Requests a second of `serve` on the loopback, with 64 clients at once, beside the bare product with top-k.

    python benchmarks/serve.py [--n_items=100000] [--requests=2000] [--clients=64]

The server runs in a process of its own, on random vectors of 64 numbers; clients are threads of this one, each with a
connection that it keeps. A request is for the 10 best items of one user. The bare side multiplies one user's vector
with all items and keeps the best, again and again, without a history to leave out. Every answer is compared with what
`recommend` lists. Lines: requests a second, how long the slowest hundredth takes, answers that are wrong, and last the
ratio of the seconds a request; 1 if it is above its limit or an answer is wrong.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import torch
from recommend import recommender_of

from recbole_perpeft.use.recommend import Recommender
from recbole_perpeft.use.server import bound, serve
from recbole_perpeft.use.service import Service

LIMIT = 2.0
N_USERS, K = 10_000, 10
CLOSE = 1e-5
SECONDS = 120


def serve_items(n_items: int, port: Connection) -> None:
    """The server's process."""
    torch.set_num_threads(1)
    with bound("127.0.0.1", 0) as address:
        port.send(address.getsockname()[1])
        serve(Service(recommender_of(n_items, N_USERS)), address)


def ask(connection: http.client.HTTPConnection, user: str) -> tuple[float, dict]:
    """Seconds, and the list."""
    began = time.perf_counter()
    connection.request("POST", "/recommend", json.dumps({"users": [user], "k": K}))
    answer = json.loads(connection.getresponse().read())
    return time.perf_counter() - began, answer["lists"][0]


def client(port: int, users: list[str]) -> list[tuple[float, dict]]:
    """Asks for one user after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    answers = [ask(connection, user) for user in users]
    connection.close()
    return answers


def wait(port: int) -> None:
    """Until the server answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            client(port, ["1"])
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


@torch.no_grad()
def bare(vectors: torch.Tensor, n: int) -> float:
    """Seconds a request of the product alone."""
    users = torch.randn(n, 1, vectors.shape[1])
    began = time.perf_counter()
    for user in users:
        (user @ vectors.T).topk(K, dim=1)
    return (time.perf_counter() - began) / n


def n_wrong(recommender: Recommender, answers: list[dict]) -> int:
    """Answers that are not the lists of `recommend`; scores in another batch differ in the last digit."""
    table = recommender.for_users([answer["user_id"] for answer in answers], K)
    scores = table["score"].to_numpy().reshape(-1, K)
    items = table["item_id"].to_numpy().reshape(-1, K)
    wrong = 0
    for answer, of_user, best in zip(answers, scores, items, strict=True):
        found = np.array([item["score"] for item in answer["items"]])
        others = np.array([item["item_id"] for item in answer["items"]]) != best
        steps = -np.diff(of_user, prepend=np.inf, append=-np.inf)
        is_tie = np.minimum(steps[1:], steps[:-1]) < CLOSE
        wrong += not np.allclose(found, of_user, atol=CLOSE) or bool((others & ~is_tie).any())
    return wrong


def main() -> int:
    """Prints the measurements; 1 if the ratio is above its limit or an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n_items", type=int, default=100_000, help="items of the catalogue")
    parser.add_argument("--requests", type=int, default=2000, help="requests in all")
    parser.add_argument("--clients", type=int, default=64, help="clients at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_items, args=(arguments.n_items, theirs))
    process.start()
    theirs.close()  # so that a server that does not begin is noticed
    recommender = recommender_of(arguments.n_items, N_USERS)
    users = np.random.default_rng(1).choice(recommender.all_users(), arguments.requests)
    try:
        port = ours.recv()
        wait(port)
        alone = client(port, users[:50].tolist())
        with ThreadPoolExecutor(arguments.clients) as pool:
            began = time.perf_counter()
            parts = [part.tolist() for part in np.array_split(users, arguments.clients)]
            answers = [answer for found in pool.map(client, [port] * len(parts), parts) for answer in found]
            seconds = (time.perf_counter() - began) / len(answers)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join()
    product = bare(recommender.model.vectors[1:], 200)
    wrong = n_wrong(recommender, [answer for _, answer in answers])
    slow = 1000 * np.quantile([took for took, _ in answers], 0.99)
    print(f"{arguments.n_items:,} items; one client: {1000 * np.median([took for took, _ in alone]):.1f} ms a request")
    print(
        f"serve {1 / seconds:.0f} requests a second of {arguments.clients} clients, the bare product {1 / product:.0f}"
    )
    print(f"serve_p99 {slow:.0f} ms, a fair share of the time is {1000 * seconds * arguments.clients:.0f} ms")
    print(f"serve_wrong {wrong} limit 0")
    print(f"serve ratio {seconds / product:.3f} limit {LIMIT}")
    return int(wrong > 0 or seconds / product > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
