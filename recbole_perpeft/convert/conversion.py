"""One conversion from start to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from recbole_perpeft.convert.atomic import Items, plain_text, write_interactions, write_items
from recbole_perpeft.convert.events import EventSpool, Log
from recbole_perpeft.convert.filters import FilterSettings
from recbole_perpeft.convert.images import JOURNAL, FinishedImage, UnfinishedImagesError, convert_images
from recbole_perpeft.convert.source import ExpectedCounts, Source
from recbole_perpeft.core.digest import file_hash, sha256
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import checked_name
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import PhotoLimits
from recbole_perpeft.core.settings import Settings, same_as, setting
from recbole_perpeft.core.whole import alone, clear, disk_errors, draft_of, put_in_place, remove
from recbole_perpeft.data.photos.images import IMAGE_FOLDER

REPORT = "conversion.json"
REJECTED_IMAGES = "rejected_images.tsv"
_IMAGES = ".images"  # in a draft: what is kept of a conversion that was interrupted
_SPOOL = ".spool"
_UNPACKED = ".unpacked"


@dataclass(frozen=True)
class ConversionSettings(Settings):
    """What every source can be told."""

    filters: FilterSettings = setting(help="which interactions stay")
    max_side: int | None = setting(None, "make images smaller whose longer side has more pixels", least=16)
    unescape_titles: bool = setting(False, "make HTML entities in texts characters")
    overwrite: bool = setting(False, "replace an earlier conversion")
    photo_seconds: float = same_as(PhotoLimits, "photo_seconds")
    photo_memory: int = same_as(PhotoLimits, "photo_memory")
    workers: int | None = setting(None, "processes for images; by default as many as pay", least=1)
    show_progress: bool = setting(True, "show bars")


def convert(
    source: Source, folder: Path, settings: ConversionSettings, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Convert a data set.

    Args:
        source: where it comes from.
        folder: where it goes; its name is that of the data set.
        settings: how.
        options: the source's own flags, for the report.

    Returns:
        The report, as it stands in `conversion.json`.

    Raises:
        PerPEFTError: something is wrong with the input or the folder; nothing is left behind.
    """
    folder = Path(folder).absolute()
    with output_folder(folder, settings.overwrite) as draft:
        unpacked = draft / _UNPACKED
        unpacked.mkdir()
        source.prepare(unpacked)
        log, users, tokens, counts = _write_log(source, draft, f"{folder.name}.inter", settings.filters)
        items = _items(source, tokens, settings.unescape_titles)
        images = _images(source, items, draft, settings)
        write_items(draft / f"{folder.name}.item", items)
        source.side_files(draft, folder.name, items.tokens, users)
        shutil.rmtree(unpacked)
        report: dict[str, Any] = {
            "source": source.name,
            "options": _described(options or {}) | _described_settings(settings),
            "input": [{"file": path.name, "sha256": file_hash(path)} for path in source.input_files()],
            "counts": counts,
            "data_set": _statistics(log, items),
            "differences": _differences(source.expected(), counts[-1]),
            "rejected_images": sum(not image.file for image in images),
        }
        report["output"] = {path.name: file_hash(path) for path in sorted(draft.iterdir()) if path.is_file()}
        report["output"][IMAGE_FOLDER] = _hash_of_images(images)
        write_report(draft, report)
    return report


@contextmanager
def output_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a draft folder, which becomes `folder` when the block ends without an error.

    An error leaves nothing behind. A kill or an interruption leaves the draft; the next run goes on with its images.

    Args:
        folder: where the data set belongs, an absolute path.
        overwrite: whether an earlier conversion there may be replaced.

    Raises:
        PerPEFTError: the folder is there and may not be replaced, another conversion is writing it, or the disk does
            not take it.
    """
    _check_replaceable(folder, overwrite)
    draft = draft_of(folder)
    with alone(folder, patience=0), disk_errors(folder):
        try:
            clear(draft, kept=_IMAGES)
            yield draft
            remove(draft / _IMAGES)
            put_in_place(draft, folder)
        except (KeyboardInterrupt, UnfinishedImagesError):
            raise
        except BaseException:
            remove(draft)
            raise


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    checked_name(folder.name, f"{str(folder)!r}, whose last folder names the data set")
    if not folder.exists():
        return
    if not overwrite:
        raise PerPEFTError(f"{folder} exists already: pass --overwrite or choose another folder")
    if not (folder / REPORT).is_file():
        raise PerPEFTError(f"{folder} was not written by a conversion (it has no {REPORT}): delete it yourself")


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `conversion.json`; it holds no time and no place, so that equal conversions are equal files."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _write_log(
    source: Source, draft: Path, file_name: str, filters: FilterSettings
) -> tuple[Log, list[str], list[str], list[dict[str, Any]]]:
    """Write the interactions that stay; they, sorted ids of their users and items, and counts after each filter."""
    folder = draft / _SPOOL
    folder.mkdir()
    spool = EventSpool(folder)
    log = spool.fill(source.events())
    counts = [_counted("source", log)]
    for name, mask in filters.steps().items():
        log = log.kept(mask(log))
        counts.append(_counted(name, log))
        if not len(log):
            raise PerPEFTError(
                f"the filter {name} leaves no interactions of {counts[-2]['interactions']:,}; weaken it"
            )
    log = log.renumbered()
    names = spool.names(log)
    write_interactions(draft / file_name, log, names, spool.ratings(log))
    shutil.rmtree(folder)
    users, items = (sorted(names[kind].to_pylist()) for kind in ("user", "item"))
    return log, users, items, counts


def _counted(step: str, log: Log) -> dict[str, Any]:
    users, items = (int(np.count_nonzero(np.bincount(codes, minlength=1))) for codes in (log.users, log.items))
    return {"step": step, "users": users, "items": items, "interactions": len(log)}


def _items(source: Source, tokens: list[str], unescape: bool) -> Items:
    found = source.texts(tokens)
    texts = {
        column: [plain_text(by_token.get(token, ""), unescape) for token in tokens]
        for column, by_token in found.items()
    }
    return Items(tokens, texts)


def _images(source: Source, items: Items, draft: Path, settings: ConversionSettings) -> list[FinishedImage]:
    references = source.images(items.tokens)
    finished: list[FinishedImage] = []
    if references:
        kept = draft / _IMAGES
        limits = PhotoLimits(settings.photo_seconds, settings.photo_memory)
        finished = convert_images(
            references, kept, settings.max_side, settings.workers, settings.show_progress, limits
        )
        (kept / JOURNAL).unlink()
        kept.rename(draft / IMAGE_FOLDER)
        _list_rejected(draft / REJECTED_IMAGES, finished)
    file_of = {image.token: f"{IMAGE_FOLDER}/{image.file}" for image in finished if image.file}
    items.images = [file_of.get(token, "") for token in items.tokens]
    return finished


def _list_rejected(path: Path, finished: list[FinishedImage]) -> None:
    rejected = [image for image in finished if not image.file]
    if not rejected:
        return
    lines = [f"{image.token}\t{plain_text(image.problem)}\n" for image in rejected]
    path.write_text("item_id\tproblem\n" + "".join(lines), encoding="utf-8")
    LOGGER.warning(f"{len(rejected)} image(s) cannot be used; {path.name} in the data set's folder lists them")


def _statistics(log: Log, items: Items) -> dict[str, Any]:
    lengths = np.bincount(log.users)
    n_cells = len(lengths) * len(items.tokens)
    return {
        "users": len(lengths),
        "items": len(items.tokens),
        "interactions": len(log),
        "sparsity": round(1 - len(log) / n_cells, 6),
        "median_length": float(np.median(lengths)),
        "titles": items.n_with_title(),
        "images": items.n_with_image(),
        "share_without_title_and_image": round(items.n_without_content() / len(items.tokens), 6),
    }


def _differences(expected: ExpectedCounts, found: dict[str, Any]) -> list[str]:
    differences = [
        f"{number:,} {name} are published, {found[name]:,} are found"
        for name, number in asdict(expected).items()
        if number is not None and number != found[name]
    ]
    for difference in differences:
        LOGGER.warning(difference)
    return differences


def _described(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON; of a path only its name, as the same files may lie elsewhere."""
    return {name: _plain(value) for name, value in sorted(options.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _described_settings(settings: ConversionSettings) -> dict[str, Any]:
    return asdict(settings.filters) | {"max_side": settings.max_side, "unescape_titles": settings.unescape_titles}


def _hash_of_images(images: list[FinishedImage]) -> str:
    """SHA-256 over the names and hashes of all images, in the form of `sha256sum images/*`."""
    lines = [f"{image.digest}  {IMAGE_FOLDER}/{image.file}\n" for image in images if image.file]
    return sha256("".join(sorted(lines)).encode())


def summary(report: dict[str, Any]) -> str:
    """The tables that are printed: counts after each filter, and the data set."""
    steps = [
        [step["step"], *(f"{step[name]:,}" for name in ("users", "items", "interactions"))]
        for step in report["counts"]
    ]
    whole = [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value]
        for name, value in report["data_set"].items()
    ]
    right = ("left", "right", "right", "right")
    first = tabulate(steps, ["after", "users", "items", "interactions"], colalign=right, disable_numparse=True)
    return f"{first}\n\n{tabulate(whole, colalign=right[:2], disable_numparse=True)}"
