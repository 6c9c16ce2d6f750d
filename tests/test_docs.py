"""Every command that README and docs show exists, with its flags."""

import re
from importlib import import_module

import pytest

from recbole_perpeft.cli.main import VERBS
from recbole_perpeft.runs.config import Config
from recbole_perpeft.studies.compare.jobs.specs import parse_models
from recbole_perpeft.studies.search.settings import SEARCH_KEYS
from support.pages import BLOCK, PAGES, ROOT, name_of, shell_commands, words_of

SCRIPTS = {"run_recbole.py": "train", "run_compare.py": "compare", "run_hyper.py": "search"}
INLINE = re.compile(r"`((?:\w+=\S+ )*(?:python|recbole-perpeft) [^`]+)`")


def commands(page):
    """Words of each command of a page that begins with python or recbole-perpeft."""
    text = page.read_text(encoding="utf-8")
    for words in [*shell_commands(page), *map(words_of, INLINE.findall(BLOCK.sub("", text).replace("\n", " ")))]:
        if words[0] in ("python", "recbole-perpeft"):
            yield words


def verb_and_flags(words):
    """None for scripts that are no part of the program."""
    program, first, *rest = words
    if program == "python" and first in SCRIPTS:
        return SCRIPTS[first], rest
    if program == "python" and first == "-m" and rest[0] == "recbole_perpeft":
        first, *rest = rest[1:]
    elif program == "python":
        program = (ROOT / first).read_text(encoding="utf-8")
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")} - {"--help"}
        # Parsers of programs that need what is not here are read, not run.
        assert all(f'"{flag}"' in program for flag in flags), words
        return None
    return ("train", [first, *rest]) if first.startswith("--") else (first, rest)


def check_settings(model, dataset, settings):
    """Keys and values of settings; other files than those of this repository are not there."""
    settings = {key: value for key, value in settings.items() if value != "..."}
    Config(model, dataset, None, settings)


def check_train(options):
    for flag in ("resume", "config_files", "estimate"):
        options.pop(flag, None)
    check_settings(options.pop("model", None), options.pop("dataset", None), options)


def check_compare(options):
    models = options.pop("models")
    specs = [] if models.startswith("@") and not is_shipped(models) else parse_models(models)
    own = {"only", "seeds", "baseline", "parallel", "workers", "output"}
    own |= {"true_group_field", "code_version", "config_files", "splits"}
    settings = {key: value for key, value in options.items() if key not in own | {"estimate"}}
    dataset = settings.pop("dataset", None)
    for spec in specs:
        check_settings(spec.model, dataset, settings | dict(spec.settings))


def is_shipped(models):
    return (ROOT / "properties" / "compare" / f"{models[1:]}.yaml").is_file()


def check_search(options):
    check_train({key: value for key, value in options.items() if key not in SEARCH_KEYS | {"search"}})


CHECKS = {"train": check_train, "compare": check_compare, "search": check_search}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
