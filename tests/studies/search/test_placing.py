"""Where trials have their place, on machines that are numbers."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs import cluster
from recbole_perpeft.studies.search.placing import placing_of
from recbole_perpeft.studies.search.session import NewSearch
from recbole_perpeft.studies.search.settings import SearchSettings


@pytest.fixture
def machines(monkeypatch):
    """Sets the processors and GPUs of each machine."""

    def have(*sizes):
        nodes = [{"Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in sizes]
        monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
        monkeypatch.setattr(cluster, "n_gpus", lambda: sum(gpus for _, gpus in sizes))

    return have


def test_a_trial_on_one_device_has_what_it_needs_from_ray_tune(machines):
    machines((4, 2))
    found = placing_of(SearchSettings(gpus=0.5, max_concurrent=3), True, 16)
    assert found.resources == {"cpu": 1.0, "gpu": 0.5} and found.at_once == 3 and not found.settings


@pytest.mark.parametrize(
    ("sizes", "how", "at_once"),
    [
        ([(4, 0), (3, 0)], {}, 3),
        ([(4, 0), (3, 0)], {"max_concurrent": 2}, 2),
        ([(4, 0), (3, 0)], {"cpus": 2.0}, 1),
        ([(1, 0)], {"cpus": 0.5}, 1),
        ([(8, 4), (8, 0)], {}, 2),
        ([(8, 4), (8, 0)], {"gpus": 0.0}, 8),
        ([(4, 0), (4, 0)], {"scheduler": "pbt"}, 4),
    ],
)
def test_as_many_trials_at_a_time_as_have_a_place_for_all_their_devices(machines, sizes, how, at_once):
    machines(*sizes)
    settings = SearchSettings(devices_per_trial=2, address="auto", **how)
    found = placing_of(settings, True, 4)
    assert found.at_once == at_once
    assert set(found.resources) == {"memory"}  # processors and GPUs are for Ray Train to give
    assert found.settings["cpus"] == settings.cpus and found.settings["ray_address"] == "auto"
    assert found.settings["use_gpu"] is (how.get("gpus", 1) > 0 and any(gpus for _, gpus in sizes))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"devices_per_trial": 3}, "a process of a trial .* 1 CPUs .* the machines have no place for 3"),
        ({"devices_per_trial": 2, "scheduler": "pbt"}, "pbt .* of 4 trials on 2 devices each there is a place for 1"),
    ],
)
def test_too_few_devices_are_refused(machines, how, message):
    machines((2, 0))
    with pytest.raises(PerPEFTError, match=message):
        placing_of(SearchSettings(**how), False, 4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cpus": 0.0}, "cpus is 0: with devices_per_trial"),
        ({"gpus": 0.5}, "gpus is 0.5: .* one GPU to itself"),
        ({"ship_data": True}, "ship_data .* leave out one of the two"),
    ],
)
def test_what_several_devices_cannot_have_is_refused(how, message):
    with pytest.raises(PerPEFTError, match=message):
        SearchSettings(devices_per_trial=2, **how)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("MoRec", {"nproc": 2}, "nproc is 2: .* by devices_per_trial"),
        ("BPR", {}, "BPR trains in one process"),
    ],
)
def test_devices_are_said_in_one_way_and_for_models_that_can_share_a_training(toy_path, model, settings, message):
    space, own = {"learning_rate": {"choice": [0.1]}}, {"data_path": str(toy_path)} | settings
    with pytest.raises(PerPEFTError, match=message):
        NewSearch(model, "toy", space, None, own, SearchSettings(devices_per_trial=2)).carry_out()
