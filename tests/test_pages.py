"""What pages say beside their commands: links, lines of shells, Python, YAML, and what models take."""

import ast
import importlib
import json
import re

import pytest
import yaml

from recbole_perpeft.models import list_models
from support.pages import PAGES, ROOT, blocks, name_of, shell_commands

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s:]+)\)")
MODELS = sorted({"ContentKNN", "GlobalPEFT", "IISAN", "MoRec", "PerPEFT", "VIP5"} & {*list_models()})


def anchors(page):
    """Anchors of a page's headings, as forges and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading.strip()) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and ROOT in path.parents, f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{name_of(page)}: {link}"


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = {*re.findall(r"[\w/]+\.md", text)}
    there = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}
    assert named == there | {page.name.lower() for page in PAGES if page.parent == ROOT}


def known_pip(words):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert f'"{extra}": ' in setup, words
    assert words[0] == "install" and ("-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()), words


def known_pytest(words):
    assert all((ROOT / word).exists() for word in words if word.startswith("tests")), words


def known_sessions(words):
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert words[0] == "--list" or f"def {words[1].partition('-')[0]}(" in noxfile, words


PROGRAMS = {
    "pip": known_pip,
    "pytest": known_pytest,
    "nox": known_sessions,
    "ruff": lambda words: None,
    "mypy": lambda words: None,
    "docker": lambda words: None,
    "python": lambda words: None,  # tests/test_docs.py reads their flags with the parsers of the verbs
    "recbole-perpeft": lambda words: None,
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_line_of_a_shell_calls_a_program_that_is_known(page):
    for program, *words in shell_commands(page):
        assert program in PROGRAMS, f"{name_of(page)}: {program}"
        PROGRAMS[program](words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles_and_finds_what_it_imports_and_yaml_is_yaml(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


def rows_of(space):
    """Rows of the table of what a search tries."""
    shown = {
        "choice": lambda values: ", ".join(map(str, values)),
        "loguniform": lambda values: "{} to {}, logarithmic".format(*values),
        "quniform": lambda values: "{} to {} in steps of {}".format(*values),
    }
    for key, entry in space.items():
        when = entry.pop("when", {})
        ((kind, values),) = entry.items()
        wanted = {name: value if isinstance(value, list) else [value] for name, value in when.items()}
        only = "; ".join(f"`{name}` is {' or '.join(map(str, value))}" for name, value in wanted.items())
        yield f"| `{key}` | {shown[kind](values)} | {only} |"


@pytest.mark.parametrize("model", MODELS)
def test_the_page_of_a_model_shows_its_search_space_and_keys_that_it_has(model):
    page = (ROOT / "docs" / "models" / f"{model.lower()}.md").read_text(encoding="utf-8")
    space = yaml.safe_load((ROOT / "properties" / "search" / f"{model}.yaml").read_text(encoding="utf-8"))
    assert not [row for row in rows_of(space) if row not in page]
    recorded = ROOT / "tests" / "golden" / f"settings-{model}.json"
    if recorded.is_file():
        known = json.loads(recorded.read_text(encoding="utf-8"))["help"]
        table = page.partition("## What to tune")[0]
        keys = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)))
        assert not {*keys} - {*known}


def test_every_model_has_a_page():
    listed = (ROOT / "docs" / "models" / "index.md").read_text(encoding="utf-8")
    assert len(MODELS) == 6 and all(f"({model.lower()}.md)" in listed for model in MODELS)
