"""The checks of .ci/run on other versions of Python and of libraries: `nox --list`, `nox -s newest-3.12`."""

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The lowest versions of NumPy, SciPy and pandas have no wheels for later ones.
OLD_PYTHONS = ("3.10", "3.11")
PINNED = ("-c", "constraints.txt")
# A look at every floor of the package, in a minute: enough to see whether a version runs at all.
SMOKE = (
    "tests/core/test_settings.py",
    "tests/data/test_loader.py",
    "tests/pretrained/test_families.py",
    "tests/store/test_arrays.py",
    "tests/nn/test_item_encoder.py",
    "tests/training/test_ranks.py",
    "tests/models/test_content_knn.py",
    "tests/runs/test_config.py",
    "tests/use/test_topk.py",
    "tests/studies/compare/test_report.py",
    "tests/convert/test_tables.py",
    "tests/cli/test_flags.py",
)

nox.options.sessions = ["lint", "docs", "tests"]
nox.options.error_on_missing_interpreters = False
nox.needs_version = ">=2024.4.15"


def requirements(session: nox.Session, *words: str) -> list[str]:
    """What setup.py requires, by part."""
    printed = session.run("python", "scripts/requirements.py", *words, silent=True)
    return str(printed or "").split()


def run_tests(session: nox.Session, *words: str) -> None:
    """Tests by pytest's words, all of them without any, or those that the command line names after `--`."""
    session.run("pytest", *(session.posargs or words or ("-n", "2")), env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests with the versions of constraints.txt."""
    session.install(*PINNED, "-e", ".[test]")
    run_tests(session)


@nox.session(python=PYTHONS)
def smoke(session: nox.Session) -> None:
    """A few tests of each folder with the versions of constraints.txt."""
    session.install(*PINNED, "-e", ".[test]")
    run_tests(session, *SMOKE)


@nox.session(python=OLD_PYTHONS)
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that setup.py takes."""
    session.install(
        *requirements(session, "--lowest", "package", "test", "ann", "convert", "export", "search", "serve")
    )
    session.install("--no-deps", "-e", ".")
    run_tests(session)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The tests with the newest versions that there are."""
    session.install("--upgrade", "-e", ".[test]")
    run_tests(session)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, where every link and every documented name must exist."""
    session.install(*PINNED, *requirements(session, "docs"))
    session.run("mkdocs", "build", "--strict", "--site-dir", session.create_tmp())


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
