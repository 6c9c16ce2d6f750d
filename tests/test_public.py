"""What `import recbole_perpeft` offers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_perpeft

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", recbole_perpeft.__all__)
def test_every_name_is_there_and_named_as_what_it_is(name):
    found = getattr(recbole_perpeft, name)
    assert name in dir(recbole_perpeft)
    assert name == "__version__" or found.__name__ in (name, f"run_{name}")


def test_names_are_sorted_and_others_are_refused():
    assert recbole_perpeft.__all__ == sorted(recbole_perpeft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        recbole_perpeft.runn  # noqa: B018


def test_importing_the_package_imports_nothing_heavy_and_tests_read_this_checkout(tmp_path):
    code = "print({'torch', 'pandas', 'numpy', 'recbole'} & set(sys.modules), recbole_perpeft.__file__, sep='\\n')"
    words = [sys.executable, "-c", f"import sys, recbole_perpeft; {code}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["set()", recbole_perpeft.__file__], "")
    assert Path(recbole_perpeft.__file__).parents[1] == ROOT


def test_the_version_has_one_source():
    assert not re.search(r"version=\"\d", (ROOT / "setup.py").read_text(encoding="utf-8"))
    words = [sys.executable, "setup.py", "--license", "--version"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["MIT", recbole_perpeft.__version__]
