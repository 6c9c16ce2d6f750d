"""Programs that compare with another way of working: both sides compute the same, and say what each takes."""

import importlib
import re
import warnings
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


def test_both_starts_of_a_long_log_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are idle here
        importlib.import_module("long_log").main(["--tiny", "--build", f"--folder={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    starts = re.findall(r"^ +([\d,]+) (first|second) .* s, with the parts .* peak", "\n".join(lines), re.MULTILINE)
    assert starts == [("2,000", "first"), ("2,000", "second"), ("4,000", "first"), ("4,000", "second")]
    assert re.fullmatch(r"long_log slope -?\d\.\d{4} limit 1\.05", lines[-1])


def test_what_users_and_items_cost_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    million = importlib.import_module("million")
    figures = million.measure(400, 50)
    assert million.LIMITS.keys() <= figures.keys() and all(value >= 0 for value in figures.values())
    assert 0 < figures["checkpoint, seconds waited"] <= figures["checkpoint, seconds written"]
