"""Runs that Ray places, with a stand-in for Ray that carries tasks out as they are asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from recbole_perpeft.cli import compare
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs import cluster
from recbole_perpeft.studies.compare.jobs import tasks
from recbole_perpeft.studies.compare.jobs.plan import Job
from recbole_perpeft.studies.compare.jobs.runs import carry_out_all
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec
from support.ray_stand_in import LostError, raised_or, stand_in_for_ray

SETTINGS = {
    "data_path": "dataset",
    "cache_folder": "cache",
    "runs_folder": "runs",
    "ray_address": None,
    "nproc": 1,
    "use_gpu": True,
    "max_failures": 2,
}


@pytest.fixture
def ray(monkeypatch):
    """The stand-in, which notes what it is asked for; `answers` by name of the run's folder."""
    seen = SimpleNamespace(options=[], calls=[], ended=[], cancelled=[], answers={}, never=())

    def remote(**options):
        seen.options.append(options)

        def start(function):
            assert function is tasks.carry_out
            return SimpleNamespace(remote=lambda *call: seen.calls.append(call) or call[0].name)

        return start

    stand_in_for_ray(
        monkeypatch,
        2,
        seen,
        remote=remote,
        get=lambda name: raised_or(seen.answers.get(name)),
        wait=lambda names, timeout: ([name for name in names if name not in seen.never], []),
        cancel=lambda name, force: seen.cancelled.append((name, force)),
    )
    return seen


@pytest.fixture
def make_job(tmp_path):
    def make(name, **settings):
        return Job("toy", ModelSpec(name, "BPR"), 1, name, tmp_path / name, SETTINGS | settings)

    return make


def test_ray_gets_every_run_with_its_needs_and_paths_that_mean_the_same_anywhere(ray, make_job):
    jobs = [make_job("a"), make_job("b")]
    with tasks.placed_by_ray(jobs) as start:
        outcomes = carry_out_all(jobs, 10, start=start)
    assert [str(outcome).split(" (")[0] for outcome in outcomes] == [
        "a on toy, seed 1: done",
        "b on toy, seed 1: done",
    ]
    assert ray.options == 2 * [{"num_cpus": 1, "num_gpus": 0, "max_retries": 2, "max_calls": 1}]
    assert [folder for folder, _ in ray.calls] == [job.folder for job in jobs]
    assert all(Path(ray.calls[0][1][key]).is_absolute() for key in ("data_path", "cache_folder", "runs_folder"))
    assert ray.ended == [None]


def test_what_went_wrong_stands_beside_the_folder_as_without_ray(ray, make_job):
    jobs = [make_job("a"), make_job("b"), make_job("c")]
    ray.answers |= {"a": "learning_rate is 0", "b": LostError("the node died\nwhile it trained")}
    with tasks.placed_by_ray(jobs) as start:
        outcomes = carry_out_all(jobs, 1, start=start)
    assert [outcome.error for outcome in outcomes][::2] == ["learning_rate is 0", None]
    assert outcomes[1].error.startswith("Ray could not carry it out: the node died")
    assert [job.folder.with_name(f"{job.folder.name}.error.txt").exists() for job in jobs] == [True, True, False]


def test_an_interruption_stops_what_is_under_way(ray, make_job):
    jobs, ray.never = [make_job("a"), make_job("b")], ("b",)

    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tasks.placed_by_ray(jobs) as start:
        carry_out_all(jobs, 2, interrupt, start)
    assert ray.cancelled == [("b", True)]


def test_a_cluster_must_see_the_folders_of_runs_and_data(ray, make_job, monkeypatch):
    seen = []
    monkeypatch.setattr(cluster, "check_machines", lambda paths, to_do: seen.append((paths, to_do)))
    job = make_job("a", ray_address="auto", data_path="/shared/data")
    with tasks.placed_by_ray([job]):
        pass
    assert ray.address == "auto"
    assert seen == [({"output": job.folder.parent, "data": Path("/shared/data")}, "carry out runs")]


def test_what_ray_cannot_place_is_refused_before_it_starts(ray, make_job):
    with pytest.raises(PerPEFTError, match=r"a on toy, seed 1: --workers=ray .*nproc is 2: set nproc to 1"):
        tasks.placed_by_ray([make_job("b"), make_job("a", nproc=2)]).__enter__()
    assert not hasattr(ray, "address")


@pytest.mark.parametrize(("words", "expected"), [({}, None), ({"parallel": "3"}, 3)])
def test_the_command_line_lets_as_many_run_as_fit(monkeypatch, words, expected):
    found = {}

    def compared(specs, datasets, output, **options):
        found.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_perpeft.studies.compare.compare", compared)
    with pytest.raises(KeyboardInterrupt):
        compare.run({"models": "Pop", "workers": "ray"} | words)
    assert (found["workers"], found["n_parallel"]) == ("ray", expected)
    with pytest.raises(PerPEFTError, match="--workers is 'dask': it must be processes or ray"):
        compare.run({"models": "Pop", "workers": "dask"})
