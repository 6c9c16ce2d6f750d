"""What Ray spreads over machines (searches, a training, lists), on one cluster of two nodes that the tests share.

What is killed has a Ray of its own.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import psutil
import pytest
import torch

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes.ray_session import running_ray
from recbole_perpeft.runs import cluster
from recbole_perpeft.runs.run import run
from recbole_perpeft.store.catalogues import CATALOGUES_FILE
from recbole_perpeft.studies.search import SearchSettings, resume_search
from recbole_perpeft.studies.search import search as start_search
from recbole_perpeft.training.checkpoint import load_checkpoint
from recbole_perpeft.use import scorers

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[3]
SPACE = "learning_rate: {loguniform: [1e-4, 1e-1]}\nembedding_size: {choice: [8, 16]}\nweight_decay: {choice: [0.0]}\n"
STORE_BYTES = 160 * 2**20


@pytest.fixture(scope="module", autouse=True)
def cluster_of_two_nodes():
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    # As `running_ray` has it for a Ray that it starts itself.
    os.environ |= {"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "300"}
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        with running_ray(cluster.address):
            yield
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def fixed(toy_path, tmp_path):
    """Settings of all trials: BPR on `toy`."""
    return {
        "dataset": "toy",
        "data_path": str(toy_path),
        "cache_folder": str(tmp_path / "cache"),
        "stopping_step": 1000,
        "train_batch_size": 8,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
    }


@pytest.fixture
def search(fixed, tmp_path):
    """Search in `tmp_path / "out"`."""

    def start(epochs=4, space=SPACE, **settings):
        (tmp_path / "space.yaml").write_text(space, encoding="utf-8")
        settings = SearchSettings(**{"output": tmp_path / "out"} | settings)
        changes = {key: value for key, value in fixed.items() if key != "dataset"} | {"epochs": epochs}
        return start_search("BPR", fixed["dataset"], tmp_path / "space.yaml", config_dict=changes, settings=settings)

    yield start
    gc.collect()  # Ray ends the workers of a search when nothing refers to them


class Program:
    """`run_hyper.py` in a session of its own, as a terminal starts it; one trial at a time.

    Args:
        folder: where the search goes.
        fixed: settings of all trials.
        epochs: of a trial.
    """

    def __init__(self, folder, fixed, epochs):
        (folder / "space.yaml").write_text(SPACE, encoding="utf-8")
        self.output = folder / "out"
        own = {"model": "BPR", "search": folder / "space.yaml", "output": self.output, "epochs": epochs}
        own |= {"num_samples": 3, "scheduler": "none", "max_concurrent": 1}
        self.words = [f"--{key}={value}" for key, value in (fixed | own).items()]
        self.started = []
        self.start()

    def start(self, *words):
        """With other words than those of the search, if there are any."""
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "run_hyper.py", *(words or self.words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(self.process)

    def wait_for(self, condition):
        """Wait until something is the case while the program runs."""
        while not condition():
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)

    def epochs(self):
        """Finished epochs by trial."""
        return {path.parts[-3]: len(pd.read_csv(path)) for path in self.output.glob("trials/*/run/metrics.csv")}

    def statuses(self):
        """What `trial.json` says, by trial."""
        files = self.output.glob("trials/*/trial.json")
        return {path.parts[-2]: json.loads(path.read_text())["status"] for path in files}

    def workers(self):
        """Processes that are at work on a trial; Ray's agents, whose titles begin in the same way, are none."""
        return [each for each in self.processes() if "ray::ImplicitFunc" in " ".join(each.cmdline())]

    def processes(self):
        """The programs and all that they have started and that still runs, whoever their parent is by now."""
        sessions, found = {each.pid for each in self.started}, []
        for each in psutil.process_iter():
            try:
                if os.getsid(each.pid) in sessions and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def is_gone(self, seconds=60):
        """Whether no process is left, at once or soon."""
        deadline = time.time() + seconds
        while self.processes() and time.time() < deadline:
            time.sleep(0.1)
        return not self.processes()


@pytest.fixture
def program(fixed, tmp_path):
    started = []

    def start(epochs):
        started.append(Program(tmp_path, fixed, epochs))
        return started[0]

    yield start
    for each in started:
        for process in each.processes():
            process.kill()
        for process in each.started:
            process.communicate()


def test_a_machine_that_cannot_run_trials_is_named(tmp_path, monkeypatch):
    cluster.check_machines({"output": tmp_path}, "run trials", "use --ship_data")
    with pytest.raises(PerPEFTError, match=r"of the cluster does not see .*away \(data\): .* --ship_data"):
        cluster.check_machines({"output": tmp_path, "data": tmp_path / "away"}, "run trials", "use --ship_data")
    absent = ModuleType("not_installed_there")
    absent.missing = lambda paths: []
    absent.missing.__module__, absent.missing.__qualname__ = "not_installed_there", "missing"
    monkeypatch.setitem(sys.modules, "not_installed_there", absent)
    monkeypatch.setattr(cluster, "_missing", absent.missing)
    with pytest.raises(PerPEFTError, match=r"install this package there \(.*No module named 'not_installed_there'"):
        cluster.check_machines({"output": tmp_path}, "run trials", "use --ship_data")


def assert_complete(report, epochs):
    """Every trial has all its epochs, each once."""
    assert report.table["status"].tolist() == ["finished"] * 3
    assert 0.001 in report.table["learning_rate"].tolist()  # the first trial has the settings as they are
    assert report.best["test_result"]
    files = list(report.folder.glob("trials/*/run/metrics.csv"))
    assert len(files) == 3
    for path in files:
        assert pd.read_csv(path)["epoch"].tolist() == list(range(epochs))


def test_a_search_with_asha_data_in_the_object_store_and_a_trial_that_fails(search, tmp_path):
    space = "learning_rate: {choice: [0.05, 0.01, 0.00001, 1e30]}\nlearner: {choice: [sgd]}\n"
    report = search(
        9, space, searcher="grid", scheduler="asha", grace_period=1, max_failures=0, ship_data=True, max_concurrent=1
    )
    counts = report.table["status"].value_counts()
    assert counts["finished"] >= 1 and counts["stopped"] >= 1 and counts["failed"] == 1
    assert report.n_epochs < 3 * 9 < report.max_epochs
    assert report.best_settings["learning_rate"] == report.best["parameters"]["learning_rate"]
    assert "learning_rate" in report.table["error"].dropna().item()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["trial"] == report.table["trial"][0] and set(result["test_result"]) >= {"ndcg@10", "hit@5"}
    configs = [path.read_text() for path in tmp_path.glob("out/trials/*/run/config.yaml")]
    assert len(configs) == 4 and all("recbole_perpeft-" in config for config in configs)


def test_population_based_training_spreads_over_two_nodes_and_goes_on_from_other_trials(search, tmp_path):
    report = search(epochs=6, num_samples=2, scheduler="pbt", grace_period=1)
    assert report.table["error"].isna().all()
    assert report.table["status"].tolist() == ["finished"] * 2
    assert len({name for names in report.table["machines"] for name in names.split()}) == 2
    for path in tmp_path.glob("out/trials/*/run/metrics.csv"):
        assert pd.read_csv(path)["epoch"].tolist() == list(range(6))
    log = (tmp_path / "out" / "search.log").read_text()
    for trial in report.table["trial"]:  # after its last epoch a trial is not sent back
        assert log.count(f"trial {trial} epoch 6") == 1


@pytest.mark.parametrize("searcher", ["optuna", "hyperopt"])
def test_searchers_that_learn_from_earlier_trials(search, searcher):
    pytest.importorskip(searcher)
    space = (
        "learning_rate: {loguniform: [1e-4, 1e-1]}\nembedding_size: {randint: [4, 9]}\n"
        "weight_decay: {quniform: [0.0, 0.2, 0.1]}\nlearner: {choice: [adam, sgd]}\n"
    )
    table = search(2, space, searcher=searcher, num_samples=3, max_concurrent=1).table
    assert table["error"].isna().all() and len(table) == 3
    assert table["learning_rate"].between(1e-4, 1e-1).all() and table["learning_rate"].nunique() == 3
    assert set(table["embedding_size"]) <= set(range(4, 9)) and set(table["weight_decay"]) <= {0.0, 0.1, 0.2}


def test_a_trial_on_two_devices_ends_as_one_process_that_takes_two_batches_a_step(aspects_settings, tmp_path):
    chosen = aspects_settings | {"train_windows": "newest", "epochs": 1, "epochs_global": 1, "peft_type": "none"}
    chosen |= {"sparse_ids": True, "id_embedding_reg": 0}
    how = SearchSettings(num_samples=1, scheduler="none", devices_per_trial=2, output=tmp_path / "out")
    space = {"learning_rate": {"choice": [0.001]}}
    report = start_search("PerPEFT", space=space, config_dict=chosen, settings=how)
    alone = run("PerPEFT", config_dict=chosen | report.best["parameters"] | {"batches_a_step": 2})
    assert report.best["test_result"] == alone["test_result"]
    assert report.table["score"].tolist() == [alone["best_valid_score"]]
    assert report.table["trained_epochs"].tolist() == [alone["epochs"]] and report.table["starts"].tolist() == [1]
    assert report.best_settings["nproc"] == 2 and "max_failures" not in report.best_settings
    log = (tmp_path / "out" / "search.log").read_text()
    assert [log.count(f"epoch {epoch}, NDCG@10") for epoch in (1, 2, 3)] == [1, 1, 0]
    folders = Path(report.best["run_folder"]), Path(alone["run_folder"])
    found, expected = (load_checkpoint(folder / "best.pth") for folder in folders)
    assert found["config"]["nproc"] == found["config"]["batches_a_step"] == 2
    for name, tensor in expected["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            assert torch.allclose(found["state_dict"][name], tensor, rtol=0, atol=1e-6), name
    names, expected_names = ({path.name for path in folder.iterdir()} for folder in folders)
    assert names == expected_names - {CATALOGUES_FILE}  # which a run without test does not write


def test_places_of_a_training_whose_processes_were_killed_are_given_back(tmp_path):
    from ray.util.placement_group import placement_group, placement_group_table

    own, other = (
        placement_group([{"CPU": 0.5, "memory": cluster.mark_of(tmp_path / name)}] * 2) for name in ("run", "other")
    )
    assert own.wait(60) and other.wait(60)
    cluster.free_places(tmp_path / "run")
    assert [placement_group_table(group)["state"] for group in (own, other)] == ["REMOVED", "CREATED"]
    cluster.free_places(tmp_path / "other")


def test_workers_on_two_nodes_make_the_file_that_this_process_makes(fixed, tmp_path, monkeypatch):
    monkeypatch.setattr(scorers, "USERS_AT_ONCE", 8)
    folder = run("BPR", config_dict=fixed | {"epochs": 1, "run_folder": str(tmp_path / "run")})["run_folder"]
    words = ["recommend", f"--run={folder}", "--all_users", "--k=3", "--no_progress"]
    assert main([*words, f"--output={tmp_path / 'here.parquet'}"]) == 0
    spread = ["--workers=ray", "--nproc=2", "--ray_address=auto"]
    assert main([*words, *spread, f"--output={tmp_path / 'there.parquet'}"]) == 0
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert main([*words, "--workers=ray", "--nproc=3", f"--output={tmp_path / 'none.parquet'}"]) == 2
    assert not (tmp_path / "none.parquet").exists()


def test_a_search_goes_on_after_each_end_and_leaves_no_process(program):
    """A worker is killed, then the program, and what goes on is interrupted as by Ctrl-C."""
    running = program(epochs=40)
    running.wait_for(lambda: any(count >= 5 for count in running.epochs().values()))
    workers = running.workers()
    assert workers
    for worker in workers:
        worker.kill()
    running.wait_for(lambda: "finished" in running.statuses().values() and len(running.epochs()) >= 2)
    running.process.kill()
    assert running.process.wait() == -signal.SIGKILL
    assert running.is_gone()
    assert not (running.output / "result.json").exists()

    running.start(f"--resume={running.output}")
    running.wait_for(lambda: len(running.epochs()) == 3)
    os.killpg(running.process.pid, signal.SIGINT)  # to all processes of the terminal
    _, text = running.process.communicate(timeout=600)
    assert running.process.returncode == 130
    assert "--resume=" in text and "Traceback" not in text
    assert running.is_gone()
    assert (running.output / "trials.csv").is_file() and not (running.output / "result.json").exists()

    report = resume_search(running.output)
    assert_complete(report, epochs=40)
    assert report.table["starts"].max() >= 2
