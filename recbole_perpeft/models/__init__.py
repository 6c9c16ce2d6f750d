"""The models of this package by name; modules are imported when a model is asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import MappingProxyType

from recbole_perpeft.core.errors import PerPEFTError

__all__ = ["get_model", "list_models", "list_recbole_models"]

MODEL_MODULES = MappingProxyType(
    {
        "GlobalPEFT": "recbole_perpeft.models.perpeft.model",
        "IISAN": "recbole_perpeft.models.iisan",
        "MoRec": "recbole_perpeft.models.morec",
        "PerPEFT": "recbole_perpeft.models.perpeft.model",
        "VIP5": "recbole_perpeft.models.vip5.model",
    }
)


def list_models() -> list[str]:
    """Names of this package's models."""
    return sorted(MODEL_MODULES)


def list_recbole_models() -> list[str]:
    """Names of the models of the installed RecBole: it has one settings file a model."""
    import recbole

    return sorted(path.stem for path in (Path(recbole.__file__).parent / "properties" / "model").glob("*.yaml"))


def get_model(name_or_class: str | type) -> type:
    """The class of a model, ours or RecBole's.

    Raises:
        PerPEFTError: no model has this name; the message names similar ones.
    """
    if not isinstance(name_or_class, str):
        return name_or_class
    if name_or_class in MODEL_MODULES:
        return getattr(importlib.import_module(MODEL_MODULES[name_or_class]), name_or_class)
    known = list_models() + list_recbole_models()
    if name_or_class not in known:
        by_lower_name = {name.lower(): name for name in known}
        close = difflib.get_close_matches(name_or_class.lower(), by_lower_name, n=3)
        hint = f"; did you mean {' or '.join(by_lower_name[name] for name in close)}?" if close else ""
        raise PerPEFTError(f"there is no model named {name_or_class!r}{hint} --list_models prints all names")
    from recbole_perpeft.core.compat import recbole_model

    return recbole_model(name_or_class)
