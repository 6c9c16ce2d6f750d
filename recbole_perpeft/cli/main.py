"""The command line: `recbole-perpeft <verb> ...`, and `python -m recbole_perpeft` without an installation.

Every verb is a module of this folder with `parse(words)`, which checks the flags, and `run(options)`, which does the
work and gives the exit status. What goes wrong in them ends here, in one line.
"""

from __future__ import annotations

import difflib
import io
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from recbole_perpeft import __version__
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.plugins import load_plugins


class Verb(NamedTuple):
    """A verb: what it does, and what to do after Ctrl-C."""

    summary: str
    after_interruption: str = "start it again"


_SAME_COMMAND = "the same command goes on from here"
VERBS = {
    "train": Verb(
        "train and evaluate a model; the verb where none is named",
        "--resume=<run folder> goes on after the last finished epoch",
    ),
    "compare": Verb("train several models under one protocol and report who is better", _SAME_COMMAND),
    "search": Verb(
        "search over the settings of a model", "--resume=<folder of the search> goes on after the last finished epochs"
    ),
    "convert": Verb("make a data set of logs, reviews or tables", "start it again to go on with the images"),
    "cache": Verb("compute hidden states ahead of runs, or take in those of PerPEFT's authors", _SAME_COMMAND),
    "recommend": Verb("lists of the best items for users, or for histories of anybody", _SAME_COMMAND),
    "explain": Verb("print a trained VIP5's explanations, and how good they are"),
    "export": Verb("write a trained model as a folder that works without this package"),
    "serve": Verb("answer requests for lists over HTTP"),
    "explore": Verb("write a page about a trained PerPEFT's groups: what each buys and looks at"),
    "aspects": Verb("make the bundled data set aspects, in any size"),
}
_KEEPS_PLUGIN = ("train", "compare", "search")
_HELP = """\
Multimodal sequential recommendation with personalised parameter-efficient fine-tuning, on RecBole.

usage: recbole-perpeft <verb> [--key=value ...]

{verbs}

  <verb> --help    what a verb takes, with examples
  --list_models    the names of all models
  --version        the version of this package
  --plugin=MODULE  with any verb: import modules of your own that register losses, models, sources and the like
  --debug          with any verb: errors show where they happened

Flags are written --key=value or --key value; --max-side and --max_side are the same.

example:
  recbole-perpeft train --model=PerPEFT --dataset=aspects"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        Exit status: 0; 1 if runs of a comparison failed, or for an error that was not foreseen; 2 for wrong input;
        130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    verb = words[0] if words and not words[0].startswith("-") else "train"
    try:
        _take_interrupts()
        _print_what_the_terminal_can()
        status = _run(verb, words)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse has printed a help page
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads_the_output():
            return 0
        if debug:
            traceback.print_exc()
        status, line = _told(error, verb)
        print(line, file=sys.stderr)
        return status


def _take_interrupts() -> None:
    """Let Ctrl-C interrupt also where it was ignored when the program began, as by a script's `... &`."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _print_what_the_terminal_can() -> None:
    """Let a terminal of few characters show others as escapes, where it would end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def compare() -> int:
    """The program `recbole-perpeft-compare`."""
    return main(["compare", *sys.argv[1:]])


def search() -> int:
    """The program `recbole-perpeft-hyper`."""
    return main(["search", *sys.argv[1:]])


def _run(verb: str, words: Sequence[str]) -> int:
    if words in (["--help"], ["-h"], ["help"]):
        print(_HELP.format(verbs="\n".join(f"  {name:<13}{verb.summary}" for name, verb in VERBS.items())))
        return 0
    if words == ["--version"]:
        print(f"recbole-perpeft {__version__}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"
        raise PerPEFTError(f"there is no verb {verb!r}: {hint} (see recbole-perpeft --help)")
    words, plugin = _without_plugin(words, keeps=verb in _KEEPS_PLUGIN)
    load_plugins(plugin)
    module = import_module(f"recbole_perpeft.cli.{verb}")
    return module.run(module.parse(words[1:] if words[:1] == [verb] else words))


def _without_plugin(words: Sequence[str], keeps: bool) -> tuple[list[str], str | None]:
    """The words without `--plugin`, which every verb takes, and its value; runs keep it among their settings."""
    rest, plugin = [], None
    for place, word in enumerate(words):
        if word.startswith("--plugin="):
            plugin = word.partition("=")[2]
        elif word == "--plugin":
            plugin = words[place + 1] if place + 1 < len(words) else ""
        elif not (place and words[place - 1] == "--plugin"):
            rest.append(word)
    if plugin is not None and keeps:
        rest.append(f"--plugin={plugin}")
    return rest, plugin


def _told(error: BaseException, verb: str) -> tuple[int, str]:
    """The exit status of an error, and the line that tells it."""
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted; {VERBS[verb].after_interruption}"
    if isinstance(error, PerPEFTError | OSError):  # the system's errors name the file: a full disk, missing rights
        return 2, f"error: {' '.join(str(error).splitlines())}"  # what it quotes may have more than a line
    first_line = (str(error).splitlines() or ["it says no more"])[0]
    return 1, f"error: unforeseen {type(error).__name__}: {first_line} ({_written_down(error)})"


def _written_down(error: BaseException) -> str:
    """Where the traceback is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="recbole-perpeft-", suffix=".log", delete=False
        ) as file:
            print(*sys.argv, file=file)
            traceback.print_exception(error, file=file)
        return f"where it happened: {file.name}"
    except OSError:
        return "--debug shows where it happened"


def _nobody_reads_the_output() -> bool:
    """Whether standard output is a pipe whose reader, such as `head`, has gone; it is then given up for good."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout, 0)  # a pipe without a reader is reported whatever is asked for
        gone = any(event & select.POLLERR for _, event in pipe.poll(0))
    except (OSError, ValueError):  # no file of the system
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
    return gone
