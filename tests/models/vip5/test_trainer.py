"""The schedule of the learning rate."""

import pytest

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.models.vip5.trainer import ScheduleSettings


def test_the_rate_rises_and_falls_in_straight_lines():
    settings = ScheduleSettings(learning_rate=2.0, warmup_ratio=0.2)
    rates = [settings.rate(step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4:] == pytest.approx([2.0 * left / 16 for left in range(16, 0, -1)])


def test_without_warm_up_the_rate_falls_from_the_first_step():
    settings = ScheduleSettings(learning_rate=1.0, warmup_ratio=0.0)
    assert [settings.rate(step, 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("warmup_ratio", [-0.1, 1.0])
def test_a_share_outside_of_the_training_is_refused(warmup_ratio):
    with pytest.raises(PerPEFTError, match="warmup_ratio"):
        ScheduleSettings(learning_rate=1.0, warmup_ratio=warmup_ratio)
