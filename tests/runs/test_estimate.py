"""What a run will take, from a few measured steps."""

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.runs import estimate
from recbole_perpeft.runs.estimate import Estimate, estimate_apart, estimate_run, seconds_of, sum_table
from recbole_perpeft.runs.run import run

MADE_UP = Estimate(
    "PerPEFT on toy",
    start=10.0,
    train={"global": 2.0, "personalised": 3.0},
    epochs={"global": 4, "personalised": 5},
    evaluation={"global": 1.0, "personalised": 0.5},
    whole_evaluation=0.5,
    n_evaluations={"global": 4, "personalised": 2},
    save={"global": 0.25, "personalised": 0.0},
    memory_mb=1000.0,
    disk_mb=20.0,
)


class Loader:
    """Batches whose work takes a second each, and nine more the first."""

    def __init__(self, clock, n):
        self.clock, self.n = clock, n

    def __len__(self):
        return self.n

    def __iter__(self):
        for number in range(self.n):
            self.clock[0] += 0.5  # until it is loaded
            yield number

    def numbered(self, numbers, epoch):
        assert list(numbers) == list(range(self.n)) and epoch == 3
        return iter(self)


def by_number(batches, n):
    found = list(batches.numbered(range(n), 3))
    assert len(found) == n
    return [batch for batch in found if batch is not None]


@pytest.mark.parametrize("n", [1, 4, 6, 500])
def test_batches_by_their_numbers_are_made_as_few(monkeypatch, n):
    monkeypatch.setattr(estimate, "perf_counter", lambda: clock[0])
    clock, seen = [0.0], []
    seconds_of(Loader(clock, n), lambda batches: seen.extend(by_number(batches, n)))
    assert seen == list(range(min(n, 11)))  # within five seconds


@pytest.mark.parametrize("n", [1, 4, 6, 500])
def test_an_epoch_follows_from_its_first_batches(monkeypatch, n):
    clock, seen = [0.0], []
    monkeypatch.setattr(estimate, "perf_counter", lambda: clock[0])
    loader = Loader(clock, n)

    def work(batches):
        assert isinstance(batches, Loader) and len(batches) == n
        for batch in batches:
            seen.append(batch)
            clock[0] += 10.0 if batch == 0 else 1.0
        clock[0] += 7.0  # the metrics

    whole = 10.0 + (n - 1) * 1.0 + n * 0.5 + 7.0
    assert whole <= seconds_of(loader, work) <= whole + 0.5  # loading one batch more
    assert len(seen) == min(n, 4) and len(list(loader)) == n


def test_a_run_is_the_sum_of_its_parts():
    assert MADE_UP.seconds == 10 + 4 * 2.25 + 4 * 1.0 + 5 * 3.0 + 2 * 0.5 + 0.5
    table = MADE_UP.table()
    assert "training (personalised)" in table and "39.5 s" in table and "1,000 MB" in table and "GPU" not in table
    lines = sum_table([(MADE_UP, 3), (Estimate("Pop on toy", start=3.0, memory_mb=99.0), 1)], 2).splitlines()
    assert lines[1].split() == ["PerPEFT", "on", "toy", "3", "39.5", "s", "118.5", "s", "1,000", "MB", "60.0", "MB"]
    assert lines[-1].split()[-7:] == ["4", "60.8", "s", "2,000", "MB", "60.0", "MB"]


@pytest.mark.parametrize("more", [{}, {"shared_in_groups": "freeze", "eval_step": 2}])
def test_stages_of_perpeft_are_measured_and_nothing_is_left(aspects_settings, tmp_path, more):
    found = estimate_run("PerPEFT", config_dict=aspects_settings | {"epochs": 4} | more)
    assert found.epochs == {"global": 2, "personalised": 4}
    step = more.get("eval_step", 1)
    assert found.n_evaluations == {"global": 2 // step, "personalised": 4 // step}
    assert all(seconds > 0 for part in (found.train, found.evaluation, found.save) for seconds in part.values())
    assert found.memory_mb > 100 and found.tested
    assert not [*tmp_path.iterdir()]


def test_evaluations_on_a_sample_are_measured_on_it_and_one_on_all(aspects_settings, caplog):
    found = estimate_run("GlobalPEFT", config_dict=aspects_settings | {"eval_sample": 5, "nproc": 1})
    assert found.n_whole == 1 and found.whole_evaluation > 0 and "evaluations of all users" in found.table()
    assert "is not counted" not in caplog.text
    without = replace(found, n_whole=0)
    assert found.seconds - without.seconds == pytest.approx(found.whole_evaluation)


def test_disk_is_that_of_the_run_for_a_model_of_recbole(toy_settings, toy_path):
    found = estimate_run("BPR", config_dict=toy_settings)
    assert not (toy_path / "runs").exists()
    folder = Path(run("BPR", config_dict=toy_settings)["run_folder"])
    names = ("best.pth", "last.pth", "metrics.csv")
    assert found.disk_mb > sum((folder / name).stat().st_size for name in names) / 1e6 * 0.8
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    assert found.disk_mb == pytest.approx(taken, rel=0.5)


def test_a_process_of_its_own_answers(monkeypatch, capsys):
    orders = []
    monkeypatch.setattr(estimate, "estimate_run", lambda **order: orders.append(order) or MADE_UP)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"settings": {"model": "BPR"}, "with_test": False})))
    assert estimate.work() == 0 and orders == [{"config_dict": {"model": "BPR"}, "with_test": False}]
    answer = capsys.readouterr().out
    assert json.loads(answer)["estimate"]["train"] == MADE_UP.train

    clock = iter([100.0, 150.0])
    monkeypatch.setattr(estimate, "perf_counter", lambda: next(clock, 0.0))
    answer = json.dumps(json.loads(answer) | {"seconds": 38.0})
    ends = iter([answer, '{"error": "no such model"}', ""])
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3, next(ends), "a\nno memory")
    )
    assert estimate_apart({"model": "BPR"}) == replace(MADE_UP, launch=12.0)  # 50 seconds, of which it worked 38
    with pytest.raises(PerPEFTError, match="^no such model$"):
        estimate_apart({})
    with pytest.raises(PerPEFTError, match="no estimate: its process ended with status 3: a / no memory"):
        estimate_apart({})
