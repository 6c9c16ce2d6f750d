"""Comparing models: `compare` from Python, `recbole-perpeft compare` on the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_perpeft.studies.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: processes that need one module of this folder start without the others.
    if name in __all__:
        return getattr(import_module("recbole_perpeft.studies.compare.comparison"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
