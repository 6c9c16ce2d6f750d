"""What strangers meet first: licence, citation, changes."""

import re
from pathlib import Path

import yaml

import recbole_perpeft

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_citation_and_page_of_licences_name_the_same_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    named = {number for number in re.findall(r"arXiv:(\d{4}\.\d{5})", read("CITATION.cff"))}
    assert named and named <= {*re.findall(r"arXiv (\d{4}\.\d{5})", read("docs/licences.md"))}
    assert citation["license"] == "MIT" and read("LICENSE").startswith("MIT License")
    assert citation["authors"][0]["name"] in read("LICENSE")
    assert "version" not in citation  # it has one place: recbole_perpeft/__init__.py


def test_every_library_that_is_required_stands_on_the_page_of_licences():
    block = re.search(r"^REQUIRES = \[(.*?)^\]", read("setup.py"), re.MULTILINE | re.DOTALL)[1]
    page = re.sub(r"[-_]", "", read("docs/licences.md").lower()).replace("pytorch]", "torch]")
    names = re.findall(r'^    "([\w-]+)', block, re.MULTILINE)
    assert len(names) > 15
    assert not [name for name in names if re.sub(r"[-_]", "", name.lower()) not in page]


def test_the_list_of_changes_has_this_version_and_one_place_for_what_comes():
    headings = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased" and recbole_perpeft.__version__ in headings
    kinds = {*re.findall(r"^### (\w+)", read("CHANGELOG.md"), re.MULTILINE)}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
