"""Groups as tasks: as many at a time as are asked for, and what goes wrong in a sentence; one test trains by Ray."""

import sys
from types import SimpleNamespace

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.model import PerPEFT
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.folder import RunFolder
from recbole_perpeft.runs.groups import is_placed_by_ray, train_group, train_groups
from recbole_perpeft.runs.run import run
from support.ray_stand_in import LostError, raised_or, stand_in_for_ray

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

FREEZE = {"shared_in_groups": "freeze", "peft_type": "none", "learning_rate": 3e-3, "epochs_global": 1}


@pytest.fixture
def ray(monkeypatch):
    """The stand-in, whose tasks end with `answers` by group, the latest first."""
    seen = SimpleNamespace(options=None, under_way=[], most=0, answers={}, cancelled=[], calls=[], ended=[])

    def remote(**options):
        seen.options = options
        return lambda function: SimpleNamespace(remote=start)

    def start(model, settings, folder, group):
        seen.calls.append((model, settings, folder))
        seen.under_way.append(group)
        seen.most = max(seen.most, len(seen.under_way))
        return group

    def get(group):
        seen.under_way.remove(group)
        return raised_or(seen.answers.get(group, ""))

    stand_in_for_ray(
        monkeypatch,
        8,
        seen,
        remote=remote,
        get=get,
        wait=lambda groups, timeout: (groups[-1:], groups[:-1]),
        cancel=lambda group, force: seen.cancelled.append(group),
        errors={"RayTaskError": ZeroDivisionError},
        is_initialized=lambda: True,
        WORKER_MODE=1,
        get_runtime_context=lambda: SimpleNamespace(worker=SimpleNamespace(mode=1)),
    )
    return seen


@pytest.fixture
def groups(aspects_settings, tmp_path):
    config = Config("PerPEFT", config_dict=aspects_settings | FREEZE | {"groups_at_once": 2, "cpus": 3})
    return lambda *numbers: train_groups(config, RunFolder(tmp_path), numbers)


def test_as_many_tasks_are_under_way_as_are_asked_for(ray, groups, tmp_path):
    assert list(groups(4, 0, 2, 1)) == [0, 2, 1, 4] and ray.most == 2
    assert ray.options == {"num_cpus": 3.0, "num_gpus": 0, "max_retries": 2, "max_calls": 1}
    model, settings, folder = ray.calls[0]
    assert (model, folder) == (PerPEFT, tmp_path) and settings["groups_at_once"] == 1 and settings["trackers"] is None
    assert list(groups()) == [] and len(ray.calls) == 4


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (LostError("killed\nby somebody"), "the task of group 2 was lost too often, at last: killed.* --resume=/"),
        ("the file is not there", "^group 2: the file is not there$"),
    ],
)
def test_what_ends_a_group_is_told_with_its_number_and_ends_the_others(ray, groups, answer, told):
    ray.answers[2] = answer
    with pytest.raises(PerPEFTError, match=told):
        list(groups(0, 2, 1))
    assert sorted(ray.cancelled) == [0, 2]


def test_groups_too_large_for_the_machines_are_refused(ray, aspects_settings, tmp_path):
    config = Config("PerPEFT", config_dict=aspects_settings | FREEZE | {"groups_at_once": 2, "cpus": 9})
    with pytest.raises(PerPEFTError, match=r"a group \(groups_at_once\) needs 9 CPUs and 0 GPUs"):
        list(train_groups(config, RunFolder(tmp_path), [0, 1]))


def test_a_process_that_ray_has_placed_takes_no_further_places(ray, monkeypatch):
    assert is_placed_by_ray()
    monkeypatch.delitem(sys.modules, "ray")
    assert not is_placed_by_ray()


def test_what_a_task_stumbles_over_travels_as_a_sentence(aspects_settings, tmp_path):
    said = train_group(PerPEFT, aspects_settings | FREEZE, tmp_path, 1)
    assert said == f"there is no checkpoint {tmp_path}/last.pth"


def test_two_tasks_of_ray_end_with_what_one_process_has(aspects_settings):
    settings = aspects_settings | FREEZE | {"n_groups": 2}
    theirs = run("PerPEFT", config_dict=settings)
    ours = run("PerPEFT", config_dict=settings | {"groups_at_once": 2, "cpus": 1})
    for key in ("group_best_epochs", "best_valid_result", "test_result", "epochs"):
        assert ours[key] == theirs[key], key
    assert len(ours["group_best_epochs"]) == 2
