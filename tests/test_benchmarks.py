"""Programs that compare with another way of working: both sides compute the same, and say what each takes."""

import importlib
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(("name", "options"), (("naive", ["--adapt_last=1"]), ("naive_iisan", [])))
def test_the_naive_way_gives_the_same_losses_and_ranks(name, options, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name).main(["--quick", *options])
    printed = capsys.readouterr().out
    assert float(re.search(r"losses differ by ([-+.e\d]+)", printed)[1]) < 1e-5
    if name == "naive":
        assert "ranks of 0 of 150 users" in printed
    assert re.fullmatch(r"naive_\w+ ratio \d\.\d{4} limit 0\.\d+", printed.splitlines()[-1])
