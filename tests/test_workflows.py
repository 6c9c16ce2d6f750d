"""What checks the project elsewhere runs what is there: workflow, hooks before a commit, sessions of nox."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


NOXFILE = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))


def constants():
    """Those of nox's file, by name."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in NOXFILE.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def sessions():
    """Names of nox's sessions, with the versions of Python where they have some."""
    found = set()
    for function in (node for node in NOXFILE.body if isinstance(node, ast.FunctionDef)):
        for decorator in function.decorator_list:
            words = {word.arg: word.value.id for word in getattr(decorator, "keywords", ())}
            found |= (
                {f"{function.name}-{version}" for version in constants()[words["python"]]}
                if words
                else {function.name}
            )
    return found


def test_the_workflow_runs_sessions_and_programs_that_exist():
    known, ran = sessions(), set()
    for job in read_yaml(".github/workflows/ci.yml")["jobs"].values():
        versions = job.get("strategy", {"matrix": {"python": [""]}})["matrix"]["python"]
        for command in (step["run"] for step in job["steps"] if "run" in step):
            ran |= {command.replace("${{ matrix.python }}", version) for version in versions}
    named = {command.partition(" -s ")[2] for command in ran if " -s " in command}
    assert named == {each for each in known if each.startswith(("lowest", "newest"))}
    plain = {command for command in ran if not command.startswith(("nox", "docker"))}
    assert plain == {".ci/run", "pip install nox"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_smoke_tests_are_of_every_floor():
    files = constants()["SMOKE"]
    assert all((ROOT / file).is_file() for file in files)
    folders = {path.name for path in (ROOT / "recbole_perpeft").iterdir() if (path / "__init__.py").is_file()}
    assert {Path(file).parts[1] for file in files} == folders


def test_hooks_before_a_commit_are_checks_of_ci_with_its_versions():
    hooks = [hook for repository in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}  # what constraints.txt has installed
    for hook in hooks:
        command = hook["entry"].replace(" --force-exclude", "")
        assert command in CI or hook["id"] == "layout", command
    assert {"ruff check", "ruff format", "mypy"} <= {hook["entry"].replace(" --force-exclude", "") for hook in hooks}


def test_templates_of_issues_are_forms():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = read_yaml(path.relative_to(ROOT))
        assert path.name == "config.yml" or {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form.get("body", ()) if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))


def test_requirements_are_those_of_setup_and_the_lowest_are_exact():
    words = [sys.executable, str(ROOT / "scripts" / "requirements.py"), "--lowest", "package", "test", "docs"]
    lowest = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert {"torch", "pytest", "mkdocs"} <= {requirement.partition("==")[0] for requirement in lowest}
    for requirement in lowest:
        name, _, version = requirement.partition("==")
        assert version and re.search(rf'"{re.escape(name)}>={re.escape(version)}[",]', setup), requirement


def test_constraints_name_one_version_of_every_library_for_every_python():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    markers = {}
    for line in lines:
        if not line.startswith("#"):
            name, marker = re.fullmatch(r"([\w.-]+)==[\w.]+(?:; (.+))?", line).groups()
            markers.setdefault(name.lower(), []).append(marker)
    later = {"python_version": "3.11", "python_full_version": "3.11.5"}
    pairs = {(f'{name} >= "{first}"', f'{name} < "{first}"') for name, first in later.items()}
    assert {tuple(found) for found in markers.values()} == {(None,), *pairs}
