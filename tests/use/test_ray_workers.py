"""Lists by workers of Ray, here without Ray: what a worker does, and that their order and their end change nothing."""

import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from recbole_perpeft.cli.recommend import parse
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.runs import cluster
from recbole_perpeft.use import ray_workers
from recbole_perpeft.use.lists import write_lists
from recbole_perpeft.use.ray_workers import Source, Worker
from recbole_perpeft.use.recommend import Recommender, Wanted


@pytest.fixture
def toy_recommender(toy_run):
    """With five batches of people."""
    recommender = Recommender.from_file(toy_run("SASRec"))
    recommender.scorer.users_at_once = 8
    return recommender


def worker(run, wanted, people, plan):
    settings = cluster.settings_anywhere(Recommender.from_file(run).dataset.config)
    shared = people.without_names(), dict(enumerate(plan))
    return Worker(
        Source(run, settings, True), wanted, torch.get_num_threads(), lambda: pickle.loads(pickle.dumps(shared))
    )


def test_a_worker_makes_the_lists_of_batches_by_their_number(toy_run, toy_recommender):
    people = toy_recommender.people_of_log(toy_recommender.all_users())
    wanted = Wanted(4, candidates=[f"i{n}" for n in range(20)], exclude=["i3"], min_score=-0.5)
    plan = toy_recommender.plan(people)
    expected = list(toy_recommender.lists(people, wanted, plan))
    make = worker(toy_run("SASRec"), wanted, people, plan)
    for number in (3, 0):
        found = make({"number": np.array([number])})
        assert (found["number"], found["error"]) == ([number], [""])
        for array, other in zip(pickle.loads(found["part"][0]), expected[number], strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(
    ("run", "wanted", "message"),
    [("nowhere", Wanted(4), "nowhere"), (None, Wanted(4, candidates=["x"]), "no item is left")],
)
def test_what_a_worker_cannot_do_comes_back_as_a_sentence(toy_run, tmp_path, run, wanted, message):
    source = Source(tmp_path / run if run else toy_run("SASRec"), {}, True)
    found = Worker(source, wanted, torch.get_num_threads(), lambda: ({}, {}))({"number": np.array([7])})
    assert message in found["error"][0] and found["number"] == [7]


def test_batches_in_any_order_and_a_kill_make_the_same_file(toy_recommender, tmp_path):
    people, wanted = toy_recommender.people_of_log(toy_recommender.all_users()), Wanted(5)
    write_lists(toy_recommender, people, wanted, tmp_path / "here.parquet")
    asked = []

    def backwards(recommender, people, wanted, batches):
        asked.append(list(batches))
        for number in reversed(batches):
            if number == 1 and len(asked) == 1:
                raise KeyboardInterrupt
            yield number, next(recommender.lists(people, wanted, [batches[number]]))

    with pytest.raises(KeyboardInterrupt):
        write_lists(toy_recommender, people, wanted, tmp_path / "there.parquet", work=backwards)
    assert not (tmp_path / "there.parquet").exists()
    assert write_lists(toy_recommender, people, wanted, tmp_path / "there.parquet", work=backwards) == 200
    assert asked == [[0, 1, 2, 3, 4], [0, 1]]
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.parquet", "there.parquet"]


@pytest.mark.parametrize(
    ("nodes", "use_gpu", "n_workers", "expected"),
    [
        ([(8, 0), (4, 0)], True, None, (2, 4, 0)),
        ([(8, 0), (4, 0)], True, 3, (3, 4, 0)),
        ([(8, 0), (1, 0)], True, 3, (3, 2, 0)),
        ([(0, 0), (6, 0)], True, None, (1, 6, 0)),
        ([(16, 4), (16, 0)], True, None, (4, 4, 1)),
        ([(16, 4), (16, 0)], False, None, (2, 16, 0)),
        ([(2, 0), (1, 0)], True, 4, "a worker .nproc. needs 1 CPUs and 0 GPUs, and the machines have no place for 4"),
        ([(16, 2)], True, 3, "a worker .nproc. needs 1 CPUs and 1 GPUs, and the machines have no place for 3"),
    ],
)
def test_workers_share_the_machines(toy_recommender, monkeypatch, tmp_path, nodes, use_gpu, n_workers, expected):
    config = toy_recommender.dataset.config
    monkeypatch.setitem(config.final_config_dict, "use_gpu", use_gpu)
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes])
    monkeypatch.setattr(cluster, "n_gpus", lambda: sum(gpus for _, gpus in nodes))
    monkeypatch.setattr(ray_session, "running_ray", lambda *_, **__: nullcontext())
    if isinstance(expected, str):
        with pytest.raises(PerPEFTError, match=expected), ray_workers.ray_workers(tmp_path, config, True, n_workers):
            pass
        return
    with ray_workers.ray_workers(tmp_path, config, True, n_workers) as work:
        assert work.args[1:] == expected
    assert work.args[0].settings["data_path"] == str(config.dataset_folder.parent.absolute())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nproc=2"], "give --workers=ray"),
        (["--ray_address=auto"], "give --workers=ray"),
        (["--workers=ray", "--nproc=0"], "--nproc is 0"),
        (["--workers=ray", "--ann=usearch"], "leave out --ann or --workers=ray"),
        (["--workers=spark"], "invalid choice: 'spark'"),
    ],
)
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(PerPEFTError, match=message):
        parse(["--run=r", "--all_users", *words])
