"""Processes of a comparison, with a stand-in for the worker that starts at once."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from joblib import cpu_count

from recbole_perpeft.studies.compare.jobs import runs
from recbole_perpeft.studies.compare.jobs.plan import Job
from recbole_perpeft.studies.compare.jobs.runs import carry_out_all
from recbole_perpeft.studies.compare.jobs.specs import ModelSpec
from support.finished_run import write_run

ROOT = Path(__file__).parents[3]
WORKER = """
    import json, os, shutil, signal, sys, time
    from pathlib import Path

    job = json.loads(sys.stdin.readline())
    folder, settings = Path(job["folder"]), job["settings"]
    folder.mkdir(exist_ok=True)
    began = time.time()
    time.sleep(settings.get("seconds", 0))
    (folder / "times.json").write_text(json.dumps([began, time.time(), os.environ.get("OMP_NUM_THREADS")]))
    print("a library says hello")
    print("what happened", file=sys.stderr, flush=True)
    if "signal" in settings:
        os.kill(os.getpid(), settings["signal"])
    if "status" in settings:
        sys.exit(settings["status"])
    if settings.get("error") is None:
        shutil.copytree(Path(__file__).parent / "finished", folder, dirs_exist_ok=True)
    print(json.dumps({"error": settings.get("error")}))
"""


@pytest.fixture
def make_job(tmp_path, monkeypatch):
    """A maker of jobs that the stand-in carries out."""
    (tmp_path / "stand_in_worker.py").write_text(textwrap.dedent(WORKER))
    write_run(tmp_path / "finished", ["i1", "i2"], np.array([1, 3]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(runs, "_WORKER", "stand_in_worker")
    return lambda name, **settings: Job("toy", ModelSpec(name, "BPR"), 1, name, tmp_path / name, settings)


def times(job):
    return json.loads((job.folder / "times.json").read_text())


def test_finished_runs_are_used_again(make_job):
    jobs = [make_job("a"), make_job("b")]
    assert [outcome.reused for outcome in carry_out_all(jobs[:1])] == [False]
    assert [outcome.reused for outcome in carry_out_all(jobs)] == [True, False]


@pytest.mark.parametrize("name", ["result.json", "metrics.csv", "test_ranks.parquet", "environment.json"])
def test_a_finished_run_with_a_damaged_file_is_run_again(make_job, name):
    job = make_job("a")
    carry_out_all([job])
    content = (job.folder / name).read_bytes()
    (job.folder / name).write_bytes(content[: len(content) // 2])
    (outcome,) = carry_out_all([job])
    assert outcome.error is None and not outcome.reused
    assert f"a on toy, seed 1: done; run again, because {job.folder / name} was damaged: " in str(outcome)
    assert (job.folder / name).read_bytes() == content
    assert [outcome.reused for outcome in carry_out_all([job])] == [True]


def test_one_run_for_two_models_with_one_folder(make_job):
    seen = []
    outcomes = carry_out_all([make_job("a", error="no"), make_job("a", error="no")], when_done=seen.append)
    assert [outcome.error for outcome in outcomes] == ["no", "no"] and len(seen) == 1


def test_failures_do_not_stop_the_others(make_job):
    jobs = [
        make_job("says", error="the loss is not finite"),
        make_job("killed", signal=9),
        make_job("crashes", signal=6),
        make_job("exits", status=4),
        make_job("works"),
    ]
    says, killed, crashes, exits, works = (outcome.error for outcome in carry_out_all(jobs))
    assert says == "the loss is not finite"
    assert "no memory left; lower --parallel" in killed
    assert "signal 6: what happened" in crashes and "status 4: what happened" in exits
    assert works is None
    error_file = jobs[0].folder.with_name("says.error.txt")
    assert error_file.read_text() == "the loss is not finite\n\nwhat happened\n"
    assert not carry_out_all([make_job("says")])[0].error and not error_file.exists()


def test_several_at_a_time(make_job, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [make_job(f"run{number}", seconds=0.6) for number in range(4)]
    carry_out_all(jobs, n_parallel=2)
    spans = sorted(times(job)[:2] for job in jobs)
    at_once = [sum(other[0] <= span[0] < other[1] for other in spans) for span in spans]
    assert max(at_once) == 2
    assert {times(job)[2] for job in jobs} == {str(max(1, cpu_count() // 2))}


def test_one_at_a_time_leaves_the_threads_alone(make_job, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    carry_out_all([make_job("a")], n_parallel=2)
    assert times(make_job("a"))[2] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    carry_out_all([make_job("b")])
    assert times(make_job("b"))[2] is None


def test_an_interruption_leaves_no_process_behind(make_job, monkeypatch):
    processes = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(start(*a, **k)) or processes[-1])

    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out_all([make_job("quick"), make_job("slow", seconds=60)], n_parallel=2, when_done=interrupt)
    assert len(processes) == 2 and all(process.poll() is not None for process in processes)


def test_the_worker_ends_with_its_parent():
    """The parent is killed: nothing closes pipes in good order, nobody sends a signal."""
    code = """
        import sys, threading, time
        from recbole_perpeft.studies.compare.jobs import runs
        threading.Thread(target=runs._end_with_parent, daemon=True).start()
        print("ready", flush=True)
        time.sleep(120)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"ready\n"
    assert process.poll() is None
    process.stdin.close()
    began = time.monotonic()
    assert process.wait(timeout=30) == 3 and time.monotonic() - began < 20
    process.stdout.close()


def test_processes_import_this_package_and_not_its_folders_as_packages():
    paths = [Path(path).resolve() for path in runs._environment(1)["PYTHONPATH"].split(os.pathsep)]
    package = ROOT / "recbole_perpeft"
    assert ROOT in paths and not [path for path in paths if path == package or package in path.parents]
