"""Programs that are killed at any moment and go on end with what they end with alone: `pytest -m kill`.

`--kills=100` kills as often in all, `--kills-seed` at other moments, and `--kills-first=17 --kills=1 -k VIP5` at the
one that a message has named.
"""

from math import ceil

import pytest

from support.kills.campaign import Campaign
from support.kills.victim import importable

NAMES = (
    *("PerPEFT", "frozen groups", "IISAN", "VIP5", "content", "cache", "convert"),
    *("compare", "compare worker", "search", "search worker"),
)


@pytest.mark.kill
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_program_goes_on_to_the_same_end(programs, tmp_path, pytestconfig, capsys, name):
    count, first, seed = (pytestconfig.getoption(name) for name in ("--kills", "--kills-first", "--kills-seed"))
    share = programs[name].share / sum(each.share for each in programs.values())
    with importable(), capsys.disabled():
        tally = Campaign(name, programs[name], tmp_path).carry_out(range(first, first + ceil(count * share)), seed)
        print(f"\n{tally}", end=" ")
    if tally.faults:
        pytest.fail("\n".join([str(tally), *tally.faults]), pytrace=False)


@pytest.mark.kill
def test_all_programs_are_killed(programs):
    assert set(NAMES) == set(programs)
