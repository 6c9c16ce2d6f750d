"""Parts of the page in HTML; every text from outside is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from recbole_perpeft.studies.report.escape import in_html

STYLE = """\
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); gap: 1rem; }
.card { border: 1px solid #ccc; border-radius: .5rem; padding: .2rem 1rem 1rem; min-width: 0; }
.items { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; margin: 0; padding: 0; }
.items li { width: 104px; font-size: .8rem; line-height: 1.25; overflow-wrap: anywhere; }
.items img { width: 96px; height: 96px; object-fit: contain; background: #f4f4f4; display: block; }
.views { display: flex; gap: 1rem; overflow-x: auto; padding-bottom: .5rem; }
.views figure { flex: 0 0 164px; } .views img { width: 160px; height: 160px; }
mark { color: #1a1a1a; padding: 0 .1rem; border-radius: .15rem; }
label { display: block; font-weight: 600; margin: .6rem 0 .2rem; }
input[type=search] { font: inherit; width: min(30rem, 100%); padding: .4rem; border: 1px solid #555; }
input[type=search]:focus { outline: 3px solid #0072B2; }
"""


@dataclass(frozen=True)
class Shown:
    """An item in a list: its title, a photo's address or None, and what is said of it."""

    title: str
    photo: str | None
    note: str = ""


def item_list(items: Iterable[Shown]) -> str:
    """Photos with titles, side by side."""
    return f'<ul class="items">{"".join(map(_item, items))}</ul>'


def _item(item: Shown) -> str:
    photo = f'<img src="{item.photo}" alt="{in_html(item.title)}">' if item.photo else ""
    note = f"<br><strong>{in_html(item.note)}</strong>" if item.note else ""
    return f"<li>{photo}{in_html(item.title)}{note}</li>"


def card(title: str, sentences: Sequence[str], items: Sequence[Shown], words: Sequence[tuple[str, float]]) -> str:
    """What a group is like."""
    said = "".join(f"<p>{in_html(sentence)}</p>" for sentence in sentences)
    typical = f"<h4>Bought more than by others</h4>{item_list(items)}" if items else ""
    listed = ", ".join(f"{in_html(word)} ({lift:.1f})" for word, lift in words)
    of_titles = f"<h4>Words of their titles</h4><p>{listed}</p>" if words else ""
    return f'<section class="card"><h3>{in_html(title)}</h3>{said}{typical}{of_titles}</section>'


def cards(parts: Iterable[str]) -> str:
    """Cards beside one another."""
    return f'<div class="cards">{"".join(parts)}</div>'


def marked_title(words: Sequence[tuple[str, float]]) -> str:
    """A title whose words are the darker, the more they count; the share is in each word's `title`."""
    most = max((share for _, share in words), default=0.0) or 1.0
    return " ".join(
        f'<mark style="background: rgba(213,94,0,{0.6 * share / most:.2f})" title="{share:.0%}">{in_html(word)}</mark>'
        for word, share in words
    )


def view(label: str, picture: str | None, words: Sequence[tuple[str, float]], said: str) -> str:
    """How somebody sees an item: photo and title, with what counts in them."""
    photo = f'<img src="{picture}" alt="{in_html(said)}">' if picture else ""
    return (
        f"<figure>{photo}<figcaption><strong>{in_html(label)}</strong><br>{marked_title(words)}</figcaption></figure>"
    )


def views(title: str, parts: Iterable[str]) -> str:
    """The views of an item, side by side."""
    return f'<h3>{in_html(title)}</h3><div class="views" tabindex="0" role="group" aria-label="{in_html(title)}">' + (
        f"{''.join(parts)}</div>"
    )


def search(data: dict[str, Any]) -> str:
    """A box that finds items and users; the script makes text nodes alone of what is found.

    Args:
        data: `items` [token, title, interactions by group] and `users` [token, group, rank].
    """
    # Nothing in a script may end it, or begin a comment in it.
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")
    script = files("recbole_perpeft.studies.explore").joinpath("search.js").read_text("utf-8")
    return (
        '<label for="query">Title, item or user</label>'
        '<input type="search" id="query" autocomplete="off" aria-describedby="found">'
        '<p id="found" role="status"></p><div class="scroll"><table id="results"></table></div>'
        f'<script type="application/json" id="data">{content}</script><script>{script}</script>'
    )
