"""The steps of the Dockerfile in a clean root folder, where there is no engine for containers.

    sudo python scripts/container.py --root=/tmp/perpeft-root --run="--epochs=1 --epochs_global=1"

needs debootstrap, and rights to change the root. The root is a Debian with Python in place of the image that `FROM`
names; a folder that exists is taken as it is. `--env=NAME=VALUE` changes or adds a variable of `ENV`, such as an index
of packages that can be reached; `--run` adds words to the command.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1]
PACKAGES = "python3,python3-pip,python3-venv,python-is-python3,ca-certificates"
# What an engine gives to every container.
GIVEN = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")


def steps(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Instructions and their words, each on a line of its own."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            instruction, _, words = line.partition(" ")
            yield instruction, words.strip()


class CleanRoot:
    """A root folder in which instructions are carried out one after another.

    Args:
        root: The folder; made where it does not exist.
        variables: Override those of `ENV`.
    """

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        self.root, self.fixed = root, variables
        self.user, self.folder = "root", "/"
        self.variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "LANG": "C.UTF-8"} | variables

    def carry_out(self, instruction: str, words: str) -> None:
        """Carry out an instruction that builds; `CMD` is left to `start`."""
        print(f"{instruction} {words}", flush=True)
        getattr(self, f"_{instruction.lower()}")(words)

    def start(self, words: list[str]) -> None:
        """Run a command as the user, in the folder and with the variables of the last instructions."""
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        home = f"HOME=/home/{self.user}" if self.user != "root" else "HOME=/root"
        command = f"cd {self.folder} && exec {shlex.join(words)}"
        inside = ["chroot", f"--userspec={self.user}", str(self.root), "/usr/bin/env", "-i", home, *variables]
        subprocess.run([*inside, "sh", "-c", command], check=True)

    def _from(self, words: str) -> None:
        if not self.root.exists():
            system = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(self.root)]
            subprocess.run(system, check=True)
        for name in GIVEN:
            if Path("/", name).exists():
                shutil.copyfile(Path("/", name), self.root / name)
        for note in self.root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):  # the image lets pip install
            note.unlink()

    def _run(self, words: str) -> None:
        self.start(["sh", "-c", words])

    def _user(self, words: str) -> None:
        self.user = words

    def _workdir(self, words: str) -> None:
        self.folder = words

    def _env(self, words: str) -> None:
        given = dict(word.split("=", 1) for word in shlex.split(words))
        known = self.variables["PATH"]
        self.variables |= {name: value.replace("$PATH", known) for name, value in given.items()} | self.fixed

    def _copy(self, words: str) -> None:
        *names, target = [word for word in shlex.split(words) if not word.startswith("--")]
        for name in names:
            is_folder = (SOURCE / name).is_dir()
            inside = Path(self.folder, target) if is_folder else Path(self.folder, target, name)
            copy: Callable[..., Any] = partial(shutil.copytree, dirs_exist_ok=True) if is_folder else shutil.copyfile
            copy(SOURCE / name, self.root / inside.relative_to("/"))
            subprocess.run(["chroot", self.root, "chown", "-R", f"{self.user}:{self.user}", inside], check=True)


def main() -> None:
    """Build, and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=Path, help="the root folder")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable")
    parser.add_argument("--run", default="", help="more words for the command")
    options = parser.parse_args()
    for tool in ("debootstrap", "chroot"):
        if shutil.which(tool) is None:
            sys.exit(f"there is no {tool}; install it, or build the Dockerfile with an engine")
    clean = CleanRoot(options.root.resolve(), dict(word.split("=", 1) for word in options.env))
    for instruction, words in steps((SOURCE / "Dockerfile").read_text(encoding="utf-8")):
        if instruction == "CMD":
            clean.start([*json.loads(words), *shlex.split(options.run)])
        else:
            clean.carry_out(instruction, words)


if __name__ == "__main__":
    main()
