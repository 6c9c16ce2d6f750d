"""Pages of the documentation, and what stands in their blocks."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(?:.*?)^```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page):
    """What tests call a page."""
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """Texts of the blocks of a page in some languages; a shell's commands have none, or bash."""
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def shell_commands(page):
    """Words of each command of a page's shell blocks; what a reader has to put in is `something`."""
    lines = "\n".join(blocks(page, "", "bash")).replace("\\\n", " ").splitlines()
    return [words_of(command) for line in lines for command in line.split(" && ") if command.strip()]


def words_of(command):
    """Words of a command, without the variables that it sets."""
    # What a reader has to put in, such as <run> or <folder or hub id>, may hold blanks.
    words = shlex.split(re.sub(r"<[^>]*>", "something", command))
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    return words
