"""Sources of data sets by name; a new one is a module with a class under `register_source`, here or elsewhere."""

from recbole_perpeft.convert.source import Source
from recbole_perpeft.core.registry import Registry

__all__ = ["SOURCES", "register_source"]

SOURCES: Registry[type[Source]] = Registry(
    "source",
    {
        "amazon2023": "recbole_perpeft.convert.sources.amazon2023:Amazon2023Source",
        "iisan": "recbole_perpeft.convert.sources.iisan:IISANSource",
        "microlens": "recbole_perpeft.convert.sources.microlens:MicroLensSource",
        "perpeft": "recbole_perpeft.convert.sources.perpeft:PerPEFTSource",
        "table": "recbole_perpeft.convert.sources.table:TableSource",
        "vip5": "recbole_perpeft.convert.sources.vip5:VIP5Source",
    },
)


def register_source(source: type[Source]) -> type[Source]:
    """A decorator that makes a source known by its `name`.

    Raises:
        PerPEFTError: another source has the name.
    """
    return SOURCES.register(source.name)(source)
