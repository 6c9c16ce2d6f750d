"""Multimodal sequential recommendation with personalised parameter-efficient fine-tuning, for RecBole.

    import recbole_perpeft

    result = recbole_perpeft.run("PerPEFT", "aspects")
    recommender = recbole_perpeft.Recommender.from_file(result["run_folder"])
    recommender.for_users(["ABCDEFGH"], k=10)

Names are imported when they are used: importing the package itself is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_perpeft.core.errors import PerPEFTError
    from recbole_perpeft.models import get_model, list_models
    from recbole_perpeft.runs.config import Config
    from recbole_perpeft.runs.run import load, resume, run
    from recbole_perpeft.studies.compare.comparison import compare
    from recbole_perpeft.studies.search.session import search
    from recbole_perpeft.use.recommend import Recommender

__version__ = "0.1.0"
__all__ = [
    "Config",
    "PerPEFTError",
    "Recommender",
    "__version__",
    "compare",
    "get_model",
    "list_models",
    "load",
    "resume",
    "run",
    "search",
]

_PLACES = {
    "Config": "recbole_perpeft.runs.config:Config",
    "PerPEFTError": "recbole_perpeft.core.errors:PerPEFTError",
    "Recommender": "recbole_perpeft.use.recommend:Recommender",
    "compare": "recbole_perpeft.studies.compare.comparison:compare",
    "get_model": "recbole_perpeft.models:get_model",
    "list_models": "recbole_perpeft.models:list_models",
    "load": "recbole_perpeft.runs.run:load",
    "resume": "recbole_perpeft.runs.run:resume",
    "run": "recbole_perpeft.runs.run:run",
    "search": "recbole_perpeft.studies.search.session:search",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
