"""The models of this package by name; modules are imported when a model is asked for."""

from __future__ import annotations

import difflib
from pathlib import Path

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.registry import Registry

__all__ = ["get_model", "list_models", "list_recbole_models", "register_model"]

_MODELS: Registry[type] = Registry(
    "model",
    {
        "ContentKNN": "recbole_perpeft.models.content_knn:ContentKNN",
        "GlobalPEFT": "recbole_perpeft.models.perpeft.model:GlobalPEFT",
        "IISAN": "recbole_perpeft.models.iisan:IISAN",
        "MoRec": "recbole_perpeft.models.morec:MoRec",
        "PerPEFT": "recbole_perpeft.models.perpeft.model:PerPEFT",
        "VIP5": "recbole_perpeft.models.vip5.model:VIP5",
    },
)


def register_model(model: type) -> type:
    """A decorator that makes a model class, ours or RecBole's kind, known by its name.

    Raises:
        PerPEFTError: another model has the name.
    """
    return _MODELS.register(model.__name__)(model)


def list_models() -> list[str]:
    """Names of this package's models, and of those that plugins have added."""
    return _MODELS.names()


def list_recbole_models() -> list[str]:
    """Names of the models of the installed RecBole: it has one settings file a model."""
    import recbole

    return sorted(path.stem for path in (Path(recbole.__file__).parent / "properties" / "model").glob("*.yaml"))


def get_model(name_or_class: str | type) -> type:
    """The class of a model, ours or RecBole's.

    A class of a user's own is known by its name from then on, so that its runs can be loaded and resumed.

    Raises:
        PerPEFTError: no model has this name, and the message names similar ones; or a class has that of another model.
    """
    if not isinstance(name_or_class, str):
        return _known_by_name(name_or_class)
    if name_or_class in _MODELS:
        return _MODELS.get(name_or_class)
    known = list_models() + list_recbole_models()
    if name_or_class not in known:
        by_lower_name = {name.lower(): name for name in known}
        close = difflib.get_close_matches(name_or_class.lower(), by_lower_name, n=3)
        hint = f"; did you mean {' or '.join(by_lower_name[name] for name in close)}?" if close else ";"
        raise PerPEFTError(
            f"there is no model named {name_or_class!r}{hint} --list_models prints all names; a class of your own is "
            "given itself as model, or registered by a plugin"
        )
    from recbole_perpeft.core.compat import recbole_model

    return recbole_model(name_or_class)


def _known_by_name(model: type) -> type:
    if model.__module__.partition(".")[0] in ("recbole", __name__.partition(".")[0]):
        return model
    if model.__name__ in list_recbole_models():
        raise PerPEFTError(
            f"the class {model.__module__}.{model.__name__} has the name of a model of RecBole, for which its runs "
            "would be taken; rename it"
        )
    return register_model(model)
