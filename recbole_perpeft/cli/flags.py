"""How flags are written, the same for every verb: `--key=value` or `--key value`, and `--max-side` is `--max_side`."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Setting

_NEGATIVE = re.compile(r"-[0-9.][0-9.e+-]*", re.IGNORECASE)
_SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}


class Flags(argparse.ArgumentParser):
    """The flags of a verb that takes no settings of a run beside them.

    Args:
        verb: The words after the program's name that call it.
        description: What the verb does.
        *examples: Flags that work; the help shows them after the verb.
    """

    def __init__(self, verb: str, description: str, *examples: str) -> None:
        super().__init__(
            prog=f"recbole-perpeft {verb}",
            usage=f"recbole-perpeft {verb} [--key=value ...]",
            description=description,
            epilog="\n".join(["examples:", *(f"  recbole-perpeft {verb} {flags}" for flags in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def declare(self, *settings: Setting, **defaults: Any) -> None:
        """Adds a flag for each of some settings; `defaults` stand above the declared ones."""
        for declared in settings:
            default = defaults.get(declared.name, declared.default)
            shown = "" if default is None or default is False else " (%(default)s)"
            words: dict[str, Any] = {"default": default, "help": declared.help + shown}
            words |= {"action": "store_true"} if declared.hint is bool else {"type": declared.plain_type}
            words |= {"choices": declared.possible} if declared.possible else {}
            self.add_argument(f"--{declared.name}", **words)

    def add_run(self, *older_names: str) -> None:
        """Adds the flags that name a finished run and where its data set is now."""
        names = ("--run", *older_names)
        self.add_argument(*names, dest="run", type=Path, required=True, help="folder of the run, or its best.pth")
        self.add_argument("--data_path", help="folder of the data set's folder, where it has moved")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of the flags.

        Raises:
            PerPEFTError: A flag is unknown, missing, or has no possible value.
        """
        options, unknown = self.parse_known_args(_joined([spelt(word) for word in words]))
        for word in unknown:
            if not word.startswith("--"):
                raise no_flag(word)
            close = difflib.get_close_matches(word.partition("=")[0], [f"--{name}" for name in vars(options)], n=1)
            hint = f", did you mean {close[0]}?" if close else ";"
            raise PerPEFTError(f"there is no flag {word.partition('=')[0]}{hint} see {self.prog} --help")
        return options

    def error(self, message: str) -> NoReturn:
        """Wrong flags end as all wrong input does: in one line, without the usage."""
        raise PerPEFTError(f"{message}; see {self.prog} --help")


def _joined(words: Sequence[str]) -> list[str]:
    """Words with a negative number joined to the flag before it: argparse takes -1e-3 for a flag."""
    found: list[str] = []
    for word in words:
        if _NEGATIVE.fullmatch(word) and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `Flags.add_run` change of the run's settings."""
    return {"data_path": options.data_path} if options.data_path else {}


def settings_of(words: Sequence[str], switches: Sequence[str] = ("help", "list_models")) -> dict[str, Any]:
    """Flags and settings of a run, which may be any.

    Args:
        words: Of the form `--key=value` or `--key value`.
        switches: Keys that stand alone and are then True.

    Returns:
        Text by key.

    Raises:
        PerPEFTError: A word is neither, a value is missing, or a key has two values.
    """
    settings: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        word = spelt(_SHORT.get(word, word))
        if not word.startswith("--") or word[2:3] in ("", "="):
            raise no_flag(word)
        key, equals, value = word[2:].partition("=")
        if key in switches and not equals:
            settings[key] = True
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise PerPEFTError(f"--{key} needs a value: --{key}=value")
            value = rest.pop(0)
        if settings.get(key, value) != value:
            raise PerPEFTError(f"--{key} is given twice, as {settings[key]} and as {value}")
        settings[key] = value
    return settings


def spelt(word: str) -> str:
    """A flag with underscores; other words, and the value behind a flag, stay as they are."""
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def no_flag(word: str) -> PerPEFTError:
    """The error for a word that is no flag."""
    return PerPEFTError(f"cannot make sense of {word!r}: settings look like --key=value (see --help)")


def yes(flag: str, value: Any) -> bool:
    """Whether a flag that stands alone is given, or is True.

    Raises:
        PerPEFTError: It has another value.
    """
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise PerPEFTError(f"--{flag} is {value!r}: it stands alone, or is True or False")
    return known[str(value).lower()]
