"""Tables: arrays with a row for every item of a data set, computed once by whoever needs them first."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_perpeft.core.digest import digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.schema import misfit
from recbole_perpeft.core.whole import Journal, alone, is_full, put_in_place, remove, write_synced, written_whole
from recbole_perpeft.data.content import PAD_TOKEN
from recbole_perpeft.data.photos.decode import DECODING
from recbole_perpeft.store.recipe import DECODED, STAMP, ComputedChunk, FinishedChunk, Recipe
from recbole_perpeft.store.rows import MappedRows, RowFiles, UnusableRowsError, draft_of_cache

MANIFEST, JOURNAL = "manifest.json", "journal.jsonl"
# Types of the entries of a manifest, and of what it says of a chunk.
_MOST_ROWS = 2**31  # of a chunk
_SCHEMA = {"chunks": list[dict], "stamps": dict[str, list[int]], "chunk_rows": int, "tokens": list[str]}
_CHUNK = {"index": int, "checksums": dict[str, int], "damaged": dict[str, str]}
N_NAMED = 3
_MOMENT = 0.1  # seconds


@dataclass(frozen=True)
class Manifest:
    """What a table holds, as written in `manifest.json`.

    Attributes:
        values: `format`, what the rows depend on besides the content, `chunk_rows`, and what showed when they were
            complete; see `Recipe`.
        chunks: how the rows were made, in their order.
        stamps: size and time of change of every file when it was last verified.
    """

    values: dict[str, Any]
    chunks: list[FinishedChunk]
    stamps: dict[str, list[int]]

    @classmethod
    def read(cls, folder: Path, recipe: Recipe) -> "Manifest":
        """Raises `UnusableRowsError` if the folder has no manifest of such a table."""
        file = folder / MANIFEST
        try:
            values = json.loads(read_regular(file))
            found = values["format"]
            if found == recipe.format:
                chunks, stamps = values.pop("chunks"), values.pop("stamps", {})
                wrong = misfit(values | {"chunks": chunks, "stamps": stamps}, _SCHEMA)
                wrong = wrong or next(filter(None, (misfit(chunk, _CHUNK) for chunk in chunks)), None)
                if wrong:
                    raise TypeError(wrong)
                if not 1 <= values.get("chunk_rows", 1) <= _MOST_ROWS:
                    raise ValueError(f"chunk_rows is no number from 1 to {_MOST_ROWS:,}")
                if missing := recipe.about.keys() - values.keys():
                    raise KeyError(*missing)
                return cls(
                    values,
                    [FinishedChunk(each["index"], each.get("checksums", {}), each["damaged"]) for each in chunks],
                    stamps,
                )
        except OSError as error:
            raise UnusableRowsError(f"{file}: cannot be read ({error.strerror}).") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UnusableRowsError(f"{file}: is no manifest of such a table ({error!r}).") from error
        raise UnusableRowsError(f"{file}: holds {found!r}, not {recipe.format!r}.")

    def write(self, file: Path) -> None:
        described = self.values | {"chunks": [asdict(chunk) for chunk in self.chunks], "stamps": self.stamps}
        write_synced(file, json.dumps(described, ensure_ascii=False).encode())


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """Read what a manifest says of a table, whose types within only the recipe knows.

    Raises:
        UnusableRowsError: in place of whatever the recipe stumbles over.
    """
    try:
        yield
    except PerPEFTError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UnusableRowsError(f"{folder / MANIFEST}: is no manifest of such a table ({error!r}).") from error


class Table(MappedRows):
    """Arrays with a row for every item of a data set, in the order of its item file, in a folder of their own.

    A finished table never changes, so any number of processes may map it.

    Attributes:
        folder: Where it lies.
        tokens: Item ids in the order of the rows.
        values: Those of its manifest.
        damaged: Why an image cannot be used, by row.
    """

    def __init__(self, folder: Path, recipe: Recipe, manifest: Manifest) -> None:
        self.folder = folder
        self.values = manifest.values
        self.tokens: list[str] = manifest.values.get("tokens", recipe.content.tokens)
        self.damaged = {int(row): why for chunk in manifest.chunks for row, why in chunk.damaged.items()}
        files = RowFiles(folder, recipe.layout(manifest.values), len(self.tokens))
        sums = {
            name: np.array([chunk.checksums[name] for chunk in manifest.chunks], dtype=np.uint32)
            for name in files.layout
            if all(name in chunk.checksums for chunk in manifest.chunks)
        }
        super().__init__(files, manifest.values.get("chunk_rows", recipe.chunk_rows), sums)

    @classmethod
    def open(cls, folder: Path, recipe: Recipe) -> "Table":
        """Open a finished table, which must be what the recipe makes.

        Raises:
            UnusableRowsError: It is missing, damaged, or the content has changed.
            PerPEFTError: It belongs to something else.
        """
        manifest = Manifest.read(folder, recipe)
        with _as_written(folder):
            recipe.check(folder, manifest.values)
            table = cls(folder, recipe, manifest)
        changed = recipe.changed_rows(table.files, manifest.values, recipe.marks())
        if len(changed):
            raise UnusableRowsError(f"{folder}: {recipe.field} of {_named(table.tokens, changed)}.")
        table._remember_verified(manifest, recipe)
        if Manifest.read(folder, recipe).chunks != manifest.chunks:
            raise UnusableRowsError(f"{folder}: was replaced while it was opened.")
        if (folder / JOURNAL).exists():  # its builder was killed after the table had its name
            table._remove_leftovers_of_a_kill(manifest, recipe)
        return table

    @classmethod
    def open_or_build(cls, folder: Path, recipe: Recipe, show_progress: bool = True) -> "Table":
        """Open a table; compute first what is missing, outdated or damaged.

        A build that is killed goes on with the next call. Processes that want the same table wait for the one that
        builds it.

        Raises:
            PerPEFTError: The folder belongs to something else, rows cannot be computed, or the disk is full.
        """
        try:
            return cls.open(folder, recipe)
        except UnusableRowsError:
            with alone(folder):
                try:
                    return cls.open(folder, recipe)
                except UnusableRowsError as problem:
                    if folder.exists():
                        _check_replaceable(folder, recipe, problem)
                        LOGGER.warning(f"{problem} What is not right is computed again.")
                    _Build(folder, recipe).run(show_progress, keeps_rows=True)
                return cls.open(folder, recipe)

    @classmethod
    def build(cls, folder: Path, recipe: Recipe, show_progress: bool = True) -> "Table":
        """Compute all rows, whatever is there; otherwise as `open_or_build`."""
        with alone(folder):
            _Build(folder, recipe).run(show_progress, keeps_rows=False)
            return cls.open(folder, recipe)

    def rows_of(self, item_tokens: Sequence[str]) -> Tensor:
        """Row of each item, int64 [n]; -1 for the pad.

        Raises:
            PerPEFTError: An item has no row.
        """
        row_of = {token: row for row, token in enumerate(self.tokens)} | {PAD_TOKEN: -1}
        try:
            return torch.tensor([row_of[str(token)] for token in item_tokens], dtype=torch.long)
        except KeyError as error:
            raise PerPEFTError(f"{self.folder}: has no item {error.args[0]!r}; add it to the item file.") from error

    def _remove_leftovers_of_a_kill(self, manifest: Manifest, recipe: Recipe) -> None:
        # Neither in a folder that may only be read, nor in one that another process is about to replace.
        with suppress(PerPEFTError, OSError), alone(self.folder, _MOMENT):
            if Manifest.read(self.folder, recipe).chunks == manifest.chunks:
                _remove_leftovers(self.folder, recipe.layout(recipe.about).keys() - self.files.layout.keys())

    def _remember_verified(self, manifest: Manifest, recipe: Recipe) -> None:
        """Read everything once if the files are not those that were verified last."""
        stamps = self.files.stamps(besides=STAMP)
        if stamps == manifest.stamps and recipe.is_decoded_as_now(manifest.values):
            return
        if stamps != manifest.stamps:
            for name in self.files.layout:
                self.verify(name, torch.arange(self.files.n_rows))
        verified = replace(manifest, stamps=stamps, values=manifest.values | _decoded(recipe))
        # A folder that may only be read is verified anew the next time.
        with suppress(PerPEFTError), written_whole(self.folder / MANIFEST) as draft:
            verified.write(draft)


def _check_replaceable(folder: Path, recipe: Recipe, problem: UnusableRowsError) -> None:
    with suppress(UnusableRowsError):  # without a manifest nothing is known of the rows
        if not recipe.may_replace(Manifest.read(folder, recipe).values):
            raise PerPEFTError(
                f"{problem} These rows were taken in from a file, and others would not go with them: take the file in "
                "again, or delete the folder to compute all of them."
            )


def _decoded(recipe: Recipe) -> dict[str, int]:
    return {DECODED: DECODING} if recipe.reads_images else {}


def _named(tokens: Sequence[str], changed: np.ndarray) -> str:
    """How many items changed, and which."""
    named = ", ".join(repr(tokens[row]) for row in changed[:N_NAMED])
    return f"{len(changed)} items changed ({named}{', ...' if len(changed) > N_NAMED else ''})"


def _remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what only the continuation of a build needs, the journal last: while it is there, more may be.

    Args:
        folder: Of the finished table.
        names: Of arrays that it does without.
    """
    for name in names:
        (folder / f"{name}.npy").unlink(missing_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)


class _Build:
    """The building of a table beside its folder, which survives a kill and is continued by the next run."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder = folder
        self._recipe = recipe
        draft = draft_of_cache(folder)
        self._files = RowFiles(draft, recipe.layout(recipe.about), len(recipe.content))
        self._journal = Journal(draft / JOURNAL)
        described = {"format": recipe.format, **recipe.about, "chunk_rows": recipe.chunk_rows}
        self._values = described | _decoded(recipe)
        self._marks = recipe.marks()

    def run(self, show_progress: bool, keeps_rows: bool) -> None:
        """Make the table.

        Args:
            show_progress: Whether to show a progress bar.
            keeps_rows: Whether rows of an earlier table in the folder that are still right are kept.
        """
        finished: dict[int, FinishedChunk] = {}
        try:
            finished |= self._resumed()
            if keeps_rows:
                self._keep(finished)
            self._compute(finished, show_progress)
            self._put_in_place([finished[index] for index in sorted(finished)])
        except OSError as error:
            if is_full(error) or not finished:
                remove(self._files.folder)
            raise self._files.refused(error, self._folder.parent, self._recipe.title) from error
        except BaseException:
            if not finished:  # there is nothing to go on with
                remove(self._files.folder)
            raise

    def _resumed(self) -> dict[int, FinishedChunk]:
        """Chunks of an earlier process that are whole and whose content has not changed since."""
        made_of = json.dumps([type(self._recipe).__name__, self._values], sort_keys=True)
        header = {"made_of": digest(made_of.encode()).hexdigest()}
        entries = self._journal.resume(header)
        if entries is None or not self._files.are_complete():
            remove(self._files.folder)
            self._files.folder.mkdir(parents=True)
            self._files.create()
            self._journal.start(header)
            return {}
        chunks = {entry["index"]: FinishedChunk(**entry) for entry in entries}
        among = np.zeros(self._files.n_rows, dtype=bool)
        for index in chunks:
            among[slice(*self._recipe.range(index))] = True
        changed = self._recipe.changed_rows(self._files, self._values, self._marks, among)
        if len(changed):
            named = _named(self._recipe.content.tokens, changed)
            LOGGER.warning(f"{self._folder}: {self._recipe.field} of {named} since its computation was interrupted.")
        return {index: chunk for index, chunk in chunks.items() if self._is_right(chunk, self._read(chunk))}

    def _keep(self, finished: dict[int, FinishedChunk]) -> None:
        """Add chunks of the earlier table, if that is one of the same rows."""
        recipe = self._recipe
        try:
            manifest = Manifest.read(self._folder, recipe)
            with _as_written(self._folder):
                recipe.check(self._folder, manifest.values)
                earlier = replace(self._files, folder=self._folder, layout=recipe.layout(manifest.values))
        except PerPEFTError:
            return
        is_same = all(manifest.values.get(name, value) == value for name, value in self._values.items())
        if not is_same or not earlier.are_complete():
            return
        stale: set[int] = set()  # what now would be decoded otherwise looks unchanged to `_is_right`
        if not recipe.is_decoded_as_now(manifest.values):
            stale |= set((recipe.changed_rows(earlier, manifest.values, self._marks) // recipe.chunk_rows).tolist())
        for chunk in manifest.chunks:
            if chunk.index in finished or chunk.index in stale:
                continue
            start, stop = recipe.range(chunk.index)
            rows = recipe.rows(earlier, manifest.values, start, stop)
            if self._is_right(chunk, rows):
                self._add(ComputedChunk(chunk.index, start, rows, chunk.damaged).write(self._files), finished)

    def _read(self, chunk: FinishedChunk) -> dict[str, np.ndarray]:
        start, stop = self._recipe.range(chunk.index)
        return {name: self._files.read(name, start, stop) for name in self._files.layout}

    def _is_right(self, chunk: FinishedChunk, rows: dict[str, np.ndarray]) -> bool:
        rows_of_chunk = slice(*self._recipe.range(chunk.index))
        is_current = (np.array_equal(rows[name], mark[rows_of_chunk]) for name, mark in self._marks.items())
        return chunk.is_of(rows) and all(is_current)

    def _add(self, chunk: FinishedChunk, finished: dict[int, FinishedChunk]) -> None:
        self._journal.add([asdict(chunk)])
        finished[chunk.index] = chunk

    def _compute(self, finished: dict[int, FinishedChunk], show_progress: bool) -> None:
        recipe, n_rows = self._recipe, len(self._recipe.content)
        n_chunks = -(-n_rows // recipe.chunk_rows)
        todo = [recipe.chunk(index) for index in range(n_chunks) if index not in finished]
        n_todo = sum(len(chunk.tokens) for chunk in todo)
        title = recipe.title[:1].upper() + recipe.title[1:]
        with tqdm(
            total=n_rows,
            initial=n_rows - n_todo,
            desc=title,
            unit="item",
            disable=not show_progress,
            dynamic_ncols=True,
        ) as bar:
            for chunk in recipe.compute(self._files, todo) if todo else ():
                self._add(chunk, finished)
                start, stop = recipe.range(chunk.index)
                bar.update(stop - start)

    def _put_in_place(self, chunks: list[FinishedChunk]) -> None:
        """Describe the complete table and give it its name; what only its continuation needs goes last."""
        values = self._values | self._recipe.finish(self._files, chunks)
        kept = replace(self._files, layout=self._recipe.layout(values))
        kept.sync()
        Manifest(values, chunks, kept.stamps(besides=STAMP)).write(kept.folder / MANIFEST)
        put_in_place(kept.folder, self._folder)
        _remove_leftovers(self._folder, self._files.layout.keys() - kept.layout.keys())
