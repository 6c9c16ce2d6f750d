"""One program: its verbs, and what becomes of an error."""

import io
import os
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import recbole_perpeft
from recbole_perpeft.cli.main import VERBS, main
from recbole_perpeft.core.errors import PerPEFTError

ROOT = Path(__file__).resolve().parents[2]


def program(command):
    """What a command of bash ends with and prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def fails_with(monkeypatch):
    """Makes the verb `explain` raise an error, and gives its words."""

    def make(error):
        def run(options):
            raise error

        monkeypatch.setattr("recbole_perpeft.cli.explain.run", run)
        return ["explain", "--model_file=x"]

    return make


def missing_file():
    return FileNotFoundError(2, "No such file or directory", "x.tsv")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PerPEFTError("k is 0: a list has an item"), 2, "error: k is 0: a list has an item"),
        (missing_file(), 2, "error: [Errno 2] No such file or directory: 'x.tsv'"),
        (KeyboardInterrupt(), 130, "interrupted; start it again"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: [Errno 32] Broken pipe"),  # of a worker, not of our reader
    ],
)
def test_an_error_is_one_line(fails_with, capsys, error, status, message):
    assert main(fails_with(error)) == status
    assert capsys.readouterr().err == f"{message}\n"


def test_an_interrupt_that_was_ignored_before_is_taken(monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr("recbole_perpeft.cli.explain.run", lambda options: signal.raise_signal(signal.SIGINT))
        assert main(["explain", "--model_file=x"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted; start it again\n"


def test_a_terminal_of_few_characters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("recbole_perpeft.cli.explain.run", lambda options: print("0.1 ± 0.2") or 0)
    assert main(["explain", "--model_file=x"]) == 0
    assert written.getvalue() == b"0.1 \\xb1 0.2\n"


def test_an_unforeseen_error_is_one_line_that_names_its_log(fails_with, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(fails_with(ZeroDivisionError("first\nsecond"))) == 1
    (log,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"error: unforeseen ZeroDivisionError: first (where it happened: {log})\n"
    assert "Traceback" in log.read_text() and "raise error" in log.read_text()


def test_where_no_log_can_be_written_debug_is_named(fails_with, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(fails_with(ZeroDivisionError())) == 1
    line = "error: unforeseen ZeroDivisionError: it says no more (--debug shows where it happened)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [PerPEFTError("wrong"), missing_file(), KeyboardInterrupt(), ZeroDivisionError()])
def test_debug_shows_where_it_happened(fails_with, capsys, tmp_path, monkeypatch, error):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main([*fails_with(error), "--debug"]) in (1, 2, 130)
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
    status, out, err = program('"$PYTHON" -m recbole_perpeft train --help | head -n 1; exit ${PIPESTATUS[0]}')
    assert (status, err) == (0, "") and out.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_the_help_page_lists_the_verbs(capsys, words):
    assert main(words) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name:<13}{verb.summary}\n" in page for name, verb in VERBS.items())


def test_every_module_beside_the_program_is_a_verb():
    modules = {path.stem for path in (ROOT / "recbole_perpeft" / "cli").glob("*.py")}
    assert modules - {"__init__", "main", "flags"} == VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples_of_its_flags(capsys, verb):
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line for line in lines if line.startswith(f"  recbole-perpeft {verb}")]
    assert examples
    for example in examples:
        words = shlex.split(example.split("     ")[0])  # what stands further to the right is a remark
        import_module(f"recbole_perpeft.cli.{verb}").parse(words[2:])


def test_flags_alone_train_and_the_version_is_told(capsys):
    assert main(["--model=SASRek"]) == 2
    assert "did you mean SASRec" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-perpeft {recbole_perpeft.__version__}\n"


@pytest.mark.parametrize(("verb", "hint"), [("trian", "did you mean train?"), ("SASRec", "there are train, compare")])
def test_an_unknown_verb_is_named(capsys, verb, hint):
    assert main([verb]) == 2
    assert f"there is no verb '{verb}': {hint}" in capsys.readouterr().err


def test_what_starts_the_program_imports_nothing_heavy():
    code = "import sys, recbole_perpeft.cli.main; print({'torch', 'pandas', 'recbole'} & set(sys.modules))"
    assert program(f'"$PYTHON" -c "{code}"') == (0, "set()\n", "")


def test_an_error_that_quotes_several_lines_is_one_line(capsys, fails_with):
    assert main(fails_with(PerPEFTError("valid_metric is a\nb"))) == 2
    assert capsys.readouterr().err == "error: valid_metric is a b\n"
