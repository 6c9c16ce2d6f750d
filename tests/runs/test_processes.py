"""Lost processes start again, wrong input is told at once. One test of searches trains by Ray itself."""

import _thread
import json
import pickle
import threading
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.processes import ray_session
from recbole_perpeft.runs import cluster, processes
from recbole_perpeft.runs.folder import RunFolder
from recbole_perpeft.runs.run import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def train(aspects_settings, tmp_path, monkeypatch):
    """Starts two processes that are not there; each time they end with an error, or with None as they should."""
    import ray.train.torch

    starts = []

    def start(*ends, **settings):
        class Trainer:
            def __init__(self, work, train_loop_config, scaling_config, **more):
                assert scaling_config.num_workers == 2
                self.folder = pickle.loads(train_loop_config["plan"]).folder

            def fit(self):
                error = ends[len(starts)]
                starts.append(error)
                if error is not None:
                    raise ray.train.WorkerGroupError(str(error), {1: error})
                (self.folder / "result.json").write_text(json.dumps({"epochs": 3}))

        monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
        folder = {"nproc": 2, "run_folder": str(tmp_path / "run")}
        return run(config_dict=aspects_settings | folder | settings)

    start.starts = starts
    monkeypatch.setattr(ray_session, "running_ray", lambda *how, **more: nullcontext())
    monkeypatch.setattr(cluster, "n_gpus", lambda: 0)
    monkeypatch.setattr(cluster, "check_resources", lambda *needs: None)
    return start


def test_lost_processes_start_again_until_that_is_too_often(train, tmp_path):
    assert train(RuntimeError("lost"), RuntimeError("lost"), None) == {"epochs": 3}
    assert len(train.starts) == 3
    assert (tmp_path / "run" / "run.log").read_text().count("a process was lost (lost); all go on") == 2


def test_ctrl_c_ends_the_wait_for_the_processes():
    has_ended = threading.Event()

    def fit():
        _thread.interrupt_main()
        has_ended.wait(20)

    with pytest.raises(KeyboardInterrupt):
        processes._begin(SimpleNamespace(fit=fit)).result()
    has_ended.set()


def test_a_training_that_is_lost_too_often_can_be_resumed(train, tmp_path):
    with pytest.raises(PerPEFTError, match=f"lost 2 times, at last: gone; .* --resume={tmp_path}/run"):
        train(RuntimeError("lost"), RuntimeError("gone"), max_failures=1)
    assert not (tmp_path / "run" / "ray").exists()


def test_wrong_input_is_told_at_once(train):
    wrong = RuntimeError("a process has ended")
    wrong.__cause__ = PerPEFTError("the file is not there")
    with pytest.raises(PerPEFTError, match="^the file is not there$"):
        train(wrong)
    assert len(train.starts) == 1


class Desk:
    """The desk without Ray: a training lays words on it, and ends with the first answer that is no."""

    def __init__(self, *words):
        self.words, self.answers, self.ended = list(words), [], Future()
        self.told, self.answer = (SimpleNamespace(remote=method) for method in (self._told, self._answer))

    def _told(self):
        if not self.words:
            self.ended.set_result(None)
        return self.words.pop(0) if self.words else None

    def _answer(self, goes_on):
        self.answers.append(goes_on)
        if not goes_on:
            self.ended.set_exception(RuntimeError("the processes have ended"))


@pytest.fixture
def without_ray(monkeypatch):
    import ray

    def get(word):
        if isinstance(word, Exception):
            raise word
        return word

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda words, timeout: (words, []))
    return ray


def test_a_callback_is_called_in_this_process_and_each_call_is_answered(without_ray):
    desk, calls = Desk((0, 0.5), (1, 0.25)), []
    processes._attend(desk.ended, desk, lambda *words: calls.append(words))
    assert calls == [(0, 0.5), (1, 0.25)] and desk.answers == [True, True]


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), PerPEFTError("enough")])
def test_an_exception_of_a_callback_ends_the_processes_first(without_ray, error):
    def callback(epoch, score):
        raise error

    desk = Desk((0, 0.5), (1, 0.25))
    with pytest.raises(type(error)):
        processes._attend(desk.ended, desk, callback)
    assert desk.answers == [False] and desk.ended.done()


def test_a_desk_that_is_lost_leaves_the_rest_to_the_training(without_ray):
    desk = Desk(without_ray.exceptions.RayError("gone"))
    processes._attend(desk.ended, desk, None)
    assert not desk.answers


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path, writes=False)
    with folder.logged(20):
        folder.write_result({"epochs": 1})
    assert not list(tmp_path.iterdir())


def test_too_many_processes_for_the_machines_are_refused(monkeypatch):
    nodes = [{"Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    cluster.check_resources(1, 0, "a process", 8)
    with pytest.raises(PerPEFTError, match="a process needs 2 CPUs and 1 GPUs, and the machines have no place for 2"):
        cluster.check_resources(2, 1, "a process", 2)
