"""Mutated inputs end with status 0 and the right result, or with one clear error: `pytest -m attack`.

`pytest tests/attack` draws a few of each kind. `--attack-count=1000` draws as many in all, `--attack-seed` others,
and `--attack-first=17 --attack-count=1 -k inter` the one that a message has named.
"""

from math import ceil

import pytest

from support.attack.attacks import ATTACKS
from support.attack.judge import campaign


@pytest.mark.attack
@pytest.mark.parametrize("kind", ATTACKS)
def test_a_mutated_input_ends_right_or_in_one_clear_error(ground, pytestconfig, capsys, kind):
    count, first, seed = (pytestconfig.getoption(f"--attack-{name}") for name in ("count", "first", "seed"))
    numbers = range(first, first + ceil(count / len(ATTACKS)))
    tally = campaign(kind, numbers, seed, lambda rng, number: ATTACKS[kind](ground, rng))
    with capsys.disabled():
        print(f"\n{tally}", end=" ")
    if tally.faults:
        pytest.fail("\n".join([str(tally), *tally.faults]), pytrace=False)


@pytest.mark.attack
def test_what_is_not_mutated_ends_right(ground):
    """Otherwise every input would end in a clear error, for another reason than its mutation."""
    place = ground.fresh()
    encoders = {"text_encoder": ground.encoder, "image_encoder": ground.encoder, "max_text_length": 12}
    assert (
        ground.judged(place, lambda mark: ground.words(place, mark, model="ContentKNN", **encoders), [])[1] == "right"
    )
