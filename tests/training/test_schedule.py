"""The schedule of the learning rate."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.perpeft.group_bests import GroupBests
from recbole_perpeft.runs.run import run
from recbole_perpeft.training.schedule import ScheduleSettings
from recbole_perpeft.training.steps import StepTrainer


def test_the_rate_rises_and_falls_in_straight_lines():
    settings = ScheduleSettings("linear", warmup_ratio=0.2)
    shares = [settings.share(step, 20) for step in range(20)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[4:] == pytest.approx([left / 16 for left in range(16, 0, -1)])


def test_without_warm_up_the_rate_falls_from_the_first_step():
    settings = ScheduleSettings("linear")
    assert [settings.share(step, 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_constant_rate_may_rise_first():
    assert [ScheduleSettings().share(step, 4) for step in range(4)] == [1.0] * 4
    assert [ScheduleSettings(warmup_ratio=0.5).share(step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup_ratio", [-0.1, 1.0])
def test_a_share_outside_of_the_training_is_refused(warmup_ratio):
    with pytest.raises(PerPEFTError, match="warmup_ratio"):
        ScheduleSettings("linear", warmup_ratio=warmup_ratio)


def rates_of(monkeypatch, settings):
    """Learning rates of all groups of parameters in every step that updates them."""
    found = []
    update = StepTrainer._update

    def note(self):
        found.append([group["lr"] for group in self.optimizer.param_groups])
        update(self)

    monkeypatch.setattr(StepTrainer, "_update", note)
    run(config_dict=settings)
    return found


def falling(rate, n_steps):
    return pytest.approx([rate * (n_steps - step) / n_steps for step in range(n_steps)])


def test_each_group_of_parameters_falls_from_its_own_rate(aspects_settings, monkeypatch):
    own = {"model": "IISAN", "param_groups": "official", "lr_side_text": 1e-5, "lr_scheduler_type": "linear"}
    steps = rates_of(monkeypatch, aspects_settings | own)
    full = steps[0]
    assert {1e-5, 1e-4} < set(full)
    assert [list(rates) for rates in zip(*steps, strict=True)] == [falling(rate, len(steps)) for rate in full]


@pytest.mark.parametrize("is_first_finished", [False, True])
def test_every_stage_has_a_schedule_of_its_own(aspects_settings, monkeypatch, is_first_finished):
    own = {"model": "PerPEFT", "lr_scheduler_type": "linear", "shared_in_groups": "freeze"}
    if is_first_finished:  # then steps pass in which nothing is learnt
        monkeypatch.setattr(GroupBests, "is_finished", lambda self, group: group == 0)
    steps = [rates[0] for rates in rates_of(monkeypatch, aspects_settings | own)]
    rate = steps[0]
    second = max(step for step, current in enumerate(steps) if current == pytest.approx(rate))
    assert second > 0
    assert steps[:second] == falling(rate, second)
    if is_first_finished:
        assert 0 < steps[-1] < rate / 2
    else:
        assert steps[second:] == falling(rate, len(steps) - second)
