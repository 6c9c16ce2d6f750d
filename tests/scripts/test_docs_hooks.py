"""Links of the repository become those of the site."""

import runpy
from pathlib import Path

import pytest

in_site = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "docs_hooks.py"))["in_site"]

LINKS = {
    "a page beside": ("docs/api.md", "[a](search.md#measured)", "[a](search.md#measured)"),
    "a page above": ("docs/models/perpeft.md", "[a](../perpeft.md)", "[a](../perpeft.md)"),
    "from the top": ("README.md", "![a](docs/perpeft.svg) [b](docs/api.md)", "![a](perpeft.svg) [b](api.md)"),
    "to the top": ("docs/public.md", "[a](../CHANGELOG.md)", "[a](changelog.md)"),
    "to the top from below": ("docs/models/index.md", "[a](../../README.md#flags)", "[a](../readme.md#flags)"),
    "a file outside": ("docs/licences.md", "[MIT](../LICENSE)", "MIT (`LICENSE`)"),
    "its own name": ("docs/architecture.md", "[`tests/test_docs.py`](../tests/test_docs.py)", "`tests/test_docs.py`"),
    "elsewhere": ("docs/api.md", "[a](https://recbole.io) [b](#here)", "[a](https://recbole.io) [b](#here)"),
    "code": ("docs/api.md", "```\n[a](nowhere.md)\n```", "```\n[a](nowhere.md)\n```"),
}


@pytest.mark.parametrize("link", LINKS)
def test_links(link):
    page, there, here = LINKS[link]
    assert in_site(there, page) == here


def test_a_link_to_nothing_names_page_and_link():
    with pytest.raises(FileNotFoundError, match=r"docs/api\.md links to nowhere\.md"):
        in_site("[a](nowhere.md)", "docs/api.md")
