"""Every command that README and docs show exists, with its flags."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from recbole_perpeft.cli.main import VERBS
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.compare.specs import parse_models
from recbole_perpeft.studies.search.session import SEARCH_KEYS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"run_recbole.py": "train", "run_compare.py": "compare", "run_hyper.py": "search"}
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\w+=\S+ )*(?:python|recbole-perpeft) [^`]+)`")


def commands(page):
    """Words of each command of a page that begins with python or recbole-perpeft."""
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    for line in [*lines, *INLINE.findall(BLOCK.sub("", text).replace("\n", " "))]:
        for command in line.split(" && "):
            # What a reader has to put in, such as <run> or <folder or hub id>, may hold blanks.
            words = shlex.split(re.sub(r"<[^>]*>", "something", command))
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words and words[0] in ("python", "recbole-perpeft"):
                yield words


def verb_and_flags(words):
    """None for scripts that are no part of the program."""
    program, first, *rest = words
    if program == "python" and first in SCRIPTS:
        return SCRIPTS[first], rest
    if program == "python" and first == "-m" and rest[0] == "recbole_perpeft":
        first, *rest = rest[1:]
    elif program == "python":
        assert (ROOT / first).is_file(), words
        return None
    return ("train", [first, *rest]) if first.startswith("--") else (first, rest)


def check_settings(model, dataset, settings):
    """Keys and values of settings; other files than those of this repository are not there."""
    settings = {key: value for key, value in settings.items() if value != "..."}
    Config(model, dataset, None, settings)


def check_train(options):
    options.pop("resume", None)
    options.pop("config_files", None)
    check_settings(options.pop("model", None), options.pop("dataset", None), options)


def check_compare(options):
    models = options.pop("models")
    specs = [] if models.startswith("@") and not is_shipped(models) else parse_models(models)
    own = ("only", "seeds", "baseline", "parallel", "output", "true_group_field", "code_version", "config_files")
    settings = {key: value for key, value in options.items() if key not in own}
    dataset = settings.pop("dataset", None)
    for spec in specs:
        check_settings(spec.model, dataset, settings | dict(spec.settings))


def is_shipped(models):
    return (ROOT / "properties" / "compare" / f"{models[1:]}.yaml").is_file()


def check_search(options):
    check_train({key: value for key, value in options.items() if key not in SEARCH_KEYS | {"search"}})


CHECKS = {"train": check_train, "compare": check_compare, "search": check_search}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_flags(page):
    for words in commands(page):
        found = verb_and_flags(words)
        if found is None or {"--help", "--version", "--list_models"} & {*words}:
            continue
        verb, flags = found
        if "something" in (verb, *flags[:1]) or not flags:  # a verb is talked about
            continue
        assert verb in VERBS, words
        options = import_module(f"recbole_perpeft.cli.{verb}").parse(flags)
        CHECKS.get(verb, lambda options: None)(options)


def test_there_are_commands_to_check():
    found = [verb_and_flags(words) for page in PAGES for words in commands(page)]
    assert {each[0] for each in found if each} >= VERBS.keys()
