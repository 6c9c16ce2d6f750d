"""The description of a content cache: what it holds and what it was made from."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.store.inputs_build import FinishedChunk, Processor, layout_of

FORMAT = "recbole_perpeft content cache, version 1"
MANIFEST = "manifest.json"


class UnusableCacheError(PerPEFTError):
    """The folder is damaged or no cache of this version; building it again mends that."""


@dataclass(frozen=True)
class Manifest:
    """What a cache holds, as written in `manifest.json`.

    Attributes:
        format: kind and version of the cache.
        data_set: name of the data set.
        key: identifies tokens, titles and processor.
        fingerprint: identifies tokens, titles and images.
        processor: its description.
        n_rows: number of items.
        arrays: data type and shape of a row of each array.
        chunks: how the rows were made.
    """

    format: str
    data_set: str
    key: str
    fingerprint: str
    processor: dict[str, Any]
    n_rows: int
    arrays: dict[str, list[Any]]
    chunks: list[FinishedChunk]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        file = folder / MANIFEST
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            found = values["format"]
            if found == FORMAT:
                values["chunks"] = [FinishedChunk(**chunk) for chunk in values["chunks"]]
                values["processor"] = dict(values["processor"])
                return cls(**values)
        except OSError as error:
            raise UnusableCacheError(f"{file}: cannot be read ({error.strerror}).") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UnusableCacheError(f"{file}: is no manifest of a content cache ({error!r}).") from error
        raise UnusableCacheError(f"{file}: holds {found!r}, not {FORMAT!r}.")

    def write(self, folder: Path) -> None:
        with open(folder / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())


def plain(description: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(description))


def cache_key(content: ItemContent, processor: Processor) -> str:
    state = content.digest()
    state.update(json.dumps([FORMAT, processor.description, layout_of(processor)], sort_keys=True).encode())
    return state.hexdigest()
