"""Hooks of mkdocs: pages at the top of the repository join the site, and links between them and docs/ hold in both.

On a forge `docs/public.md` links to `../CHANGELOG.md`, and `README.md` to `docs/data.md`. In the site these are
`changelog.md` and `data.md`; other files of the repository are not in the site, so their links become the path alone.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

ROOT = Path(__file__).resolve().parents[1]
TOP_PAGES = {name: name.lower() for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds the pages at the top of the repository."""
    from mkdocs.structure.files import File

    for name, page in TOP_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site has them."""
    source = next((name for name, target in TOP_PAGES.items() if target == page.file.src_uri), None)
    return in_site(markdown, source or f"docs/{page.file.src_uri}")


def in_site(markdown: str, source: str) -> str:
    """A page of the repository with the links of the site.

    Args:
        markdown: The page.
        source: Its path in the repository.

    Raises:
        FileNotFoundError: A link names a file that is not there.
    """
    place = PurePosixPath(source).parent
    parts = _CODE.split(markdown)  # every second one is code
    parts[::2] = [_LINK.sub(lambda link: _in_site(link, place, source), part) for part in parts[::2]]
    return "".join(parts)


def _in_site(link: re.Match[str], place: PurePosixPath, source: str) -> str:
    mark, text, target, anchor = link[1], link[2], normpath(place / link[3]), link[4] or ""
    if not (ROOT / target).exists():
        raise FileNotFoundError(f"{source} links to {link[3]}, which does not exist")
    if target in TOP_PAGES:
        found = TOP_PAGES[target]
    elif target.startswith("docs/"):
        found = target.removeprefix("docs/")
    else:
        return f"`{target}`" if text.strip("`") in (target, PurePosixPath(target).name) else f"{text} (`{target}`)"
    here = "" if source in TOP_PAGES else place.relative_to("docs")
    depth = len(PurePosixPath(here).parts)
    return f"{mark}[{text}]({'../' * depth}{found}{anchor})"
