"""The recipe of the container, without an engine: what it copies is there, what it runs is what README says."""

import ast
import fnmatch
import json
import re
import runpy
import shlex

from support.pages import ROOT, blocks

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()


def arguments(instruction):
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{instruction} ")]


def copied():
    return [word for line in arguments("COPY") for word in shlex.split(line)[:-1] if not word.startswith("--")]


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and sent == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_what_is_built_is_complete():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    folders = {"properties", "recbole_perpeft"}
    assert folders < set(copied()) and 'package_dir={"recbole_perpeft.properties": "properties"}' in setup
    opened = {node.value for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Constant)} & {"README.md"}
    assert {*opened, "LICENSE", "pyproject.toml", "setup.py", "constraints.txt"} <= set(copied())


def test_it_runs_what_readme_says_as_a_user_without_rights():
    install, _, main_job = blocks(ROOT / "README.md", "")[0].strip().partition(" && ")
    assert arguments("RUN")[-1] == install
    assert json.loads(arguments("CMD")[0]) == shlex.split(main_job)
    users = [(number, line) for number, line in enumerate(LINES) if line.startswith("USER ")]
    assert users and users[-1][1] != "USER root"
    assert users[0][0] < min(number for number, line in enumerate(LINES) if line.startswith("COPY "))
    assert any(fnmatch.fnmatch(line, "python:3.*-slim") for line in arguments("FROM"))


def test_its_steps_can_be_carried_out_without_an_engine():
    script = runpy.run_path(str(ROOT / "scripts" / "container.py"))
    found = list(script["steps"]((ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert [f"{name} {words}" for name, words in found] == [line for line in LINES if line and line[0] != "#"]
    known = {name.removeprefix("_").upper() for name in vars(script["CleanRoot"])}
    assert {name for name, _ in found} - {"CMD"} <= known
