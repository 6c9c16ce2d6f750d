"""Additions from users' own projects: modules that register losses, models, data sources and the like on import.

An installed project names its module as an entry point of the group `recbole_perpeft.plugins`; others are named by
the setting `plugin`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from recbole_perpeft.core.digest import file_hash
from recbole_perpeft.core.errors import PerPEFTError

GROUP = "recbole_perpeft.plugins"
Plugins = str | Sequence[str] | None


def load_plugins(named: Plugins = None) -> tuple[str, ...]:
    """Import the modules of installed projects, and those that are named.

    Args:
        named: Module names, as a list or separated by commas; they are looked for in the working directory too.

    Returns:
        The names, one by one.

    Raises:
        PerPEFTError: A module is missing or cannot be imported.
    """
    _load_installed()
    names = plugin_names(named)
    for name in names:
        _import(name)
    return names


def plugin_names(named: Plugins) -> tuple[str, ...]:
    """Module names of the setting `plugin`.

    Raises:
        PerPEFTError: It is neither text nor a list of texts, or an entry is no module's name.
    """
    entries = named.split(",") if isinstance(named, str) else list(named or ())
    names = tuple(entry.strip() if isinstance(entry, str) else entry for entry in entries)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise PerPEFTError(f"plugin: {name!r} is no name of a module; write --plugin=my_module for my_module.py")
    return names


def check_recorded_plugins(
    recorded: str | Sequence[str] | None, given: str | Sequence[str] | None, where: str
) -> None:
    """A record of an earlier run must not choose what code runs: its plugins are asked for again.

    Args:
        recorded: `plugin` of the record.
        given: `plugin` as the user gives it now.
        where: What the record is, for the message.

    Raises:
        PerPEFTError: A plugin of the record is neither given nor loaded.
    """
    missing = [name for name in plugin_names(recorded) if name not in {*plugin_names(given), *sys.modules}]
    if missing:
        raise PerPEFTError(f"{where} was made with the plugin {', '.join(missing)}: give --plugin={','.join(missing)}")


def plugin_digest(named: Plugins) -> str:
    """Identifies the source of plugins that are loaded: what a run depends on besides this package; empty for none."""
    files = [getattr(sys.modules[name], "__file__", None) for name in plugin_names(named)]
    return "-".join(file_hash(Path(file)) for file in files if file)


def _import(name: str) -> None:
    here = str(Path.cwd())
    is_missing = here not in sys.path and "" not in sys.path
    if is_missing:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except PerPEFTError:
        raise
    except Exception as error:  # a user's module may fail in any way
        raise PerPEFTError(
            f"plugin {name}: {type(error).__name__}: {error}; it must be importable from here"
        ) from error
    finally:
        if is_missing:
            sys.path.remove(here)


@cache
def _load_installed() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # the same, of an installed project
            raise PerPEFTError(
                f"the installed plugin {entry.name} ({entry.value}) cannot be imported: {type(error).__name__}: "
                f"{error}; mend or uninstall it"
            ) from error
