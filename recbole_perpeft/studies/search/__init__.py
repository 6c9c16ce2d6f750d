"""Searching over settings: `search` from Python, `recbole-perpeft search` on the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_perpeft.studies.search.session import SearchReport, SearchSettings, resume_search, search

__all__ = ["SearchReport", "SearchSettings", "resume_search", "search"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: processes that need one module of this folder start without the others.
    if name in __all__:
        return getattr(import_module("recbole_perpeft.studies.search.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
