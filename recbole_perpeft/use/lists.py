"""Lists of many people as a file: bounded memory, whole or not at all, and a killed process is gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_perpeft.core.digest import columns_digest, digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import Journal, alone, clear, disk_errors, remove, written_whole
from recbole_perpeft.data.files.atomic_table import TableReader, read_table
from recbole_perpeft.use.recommend import Batch, Lists, Part, People, Recommender, Wanted

_ROWS_AT_ONCE = 2**18  # of the table that is written
_KINDS = {"user_id": pa.string(), "row": pa.int64(), "item_id": pa.string(), "score": pa.float32()}  # else int32
_Write = Callable[[pd.DataFrame], Any]
# Gives the number and the lists of each of some batches, in any order.
Work = Callable[[Recommender, People, Wanted, Mapping[int, Batch]], Iterator[tuple[int, Part]]]


def here(
    recommender: Recommender, people: People, wanted: Wanted, batches: Mapping[int, Batch]
) -> Iterator[tuple[int, Part]]:
    """Lists of batches by their number, computed in this process."""
    return zip(batches, recommender.lists(people, wanted, list(batches.values())), strict=True)


@contextmanager
def _csv(path: Path, separator: str = ",") -> Iterator[_Write]:
    with open(path, "w", encoding="utf-8", newline="") as file:
        yield lambda table: table.to_csv(file, sep=separator, index=False, header=not file.tell())


@contextmanager
def _json_lines(path: Path) -> Iterator[_Write]:
    with open(path, "w", encoding="utf-8") as file:

        def write(table: pd.DataFrame) -> None:
            if len(table):  # pandas writes an empty line for none
                table.to_json(file, orient="records", lines=True, force_ascii=False)

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[_Write]:
    with ExitStack() as opened:
        writers: list[pq.ParquetWriter] = []

        def write(table: pd.DataFrame) -> None:
            schema = pa.schema([(name, _KINDS.get(name, pa.int32())) for name in table])
            if not writers:
                writers.append(opened.enter_context(pq.ParquetWriter(path, schema, compression="zstd")))
            writers[0].write_table(pa.Table.from_pandas(table, schema, preserve_index=False))

        yield write


FORMATS: dict[str, Callable[[Path], AbstractContextManager[_Write]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": partial(_csv, separator="\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}


def check_format(output: Path) -> None:
    """Refuse a file that cannot be written in the end: its suffix names no format, or it is a folder.

    Raises:
        PerPEFTError: it is one.
    """
    if output.is_dir():
        raise PerPEFTError(f"{output} is a folder: name a file in it")
    if output.suffix.lower() not in FORMATS:
        raise PerPEFTError(f"{output}: the suffix tells the format; use one of {', '.join(FORMATS)}")


def tables(recommender: Recommender, people: People, lists: Lists) -> Iterator[pd.DataFrame]:
    """Lists as tables of some hundred thousand rows, people in their order."""
    step = max(1, _ROWS_AT_ONCE // lists.items.shape[1])
    for start in range(0, max(1, len(people.names)), step):
        yield recommender.table(people, lists, slice(start, start + step))


def titles(recommender: Recommender, items: pd.Series) -> list[str] | None:
    """Titles of items by the item file of the data set; None if there is no such file, or no titles in it."""
    dataset = recommender.dataset
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not path.is_file():
        return None
    chosen = (dataset.iid_field, "title")
    table = read_table(
        TableReader(path, chosen.__contains__, dataset.config["field_separator"], dataset.config["encoding"])
    ).rows
    if not set(chosen) <= set(table):
        return None
    by_item = table.drop_duplicates(dataset.iid_field).set_index(dataset.iid_field)["title"]
    return by_item.reindex(items).fillna("").tolist()


def compute(
    recommender: Recommender, people: People, wanted: Wanted, show_progress: bool = False, work: Work = here
) -> Lists:
    """Lists in memory; arguments as of `write_lists`."""
    wanted = recommender.bounded(wanted)
    lists = Lists.empty(len(people.names), wanted.k)
    _fill(recommender, people, wanted, lists, work, None, show_progress)
    return lists


def write_lists(
    recommender: Recommender,
    people: People,
    wanted: Wanted,
    output: Path,
    show_progress: bool = False,
    work: Work = here,
) -> int:
    """Write lists to a file, whole or not at all.

    What is finished lies in a folder beside the file until it is whole: a process that was killed is gone on with by
    the same call.

    Args:
        recommender: Makes them.
        people: Whose.
        wanted: What is wanted.
        output: The file; its suffix tells the format.
        show_progress: Whether to show a bar.
        work: Computes the lists, in this process or in others.

    Returns:
        Rows of the table.

    Raises:
        PerPEFTError: The suffix names no format, or the disk does not take the file.
    """
    check_format(output)
    wanted = recommender.bounded(wanted)
    output = output.absolute()
    parts = output.with_name(f".{output.name}.parts")
    source = recommender.source or token_hex()  # of a model of nobody knows where, nothing is gone on with
    header = {"lists": 1, "of": digest(source.encode(), _digest(recommender, people, wanted)).hexdigest()}
    recommender.scorer.keeps_all = False
    with alone(output, patience=0), disk_errors(output):
        parts.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(parts / "journal")
        kinds = Lists.kinds(len(people.names), wanted.k)
        places = [parts / f"{name}.npy" for name in Lists._fields]
        is_there = not parts.is_symlink() and all(place.is_file() for place in places)
        finished = journal.resume(header) if is_there else None
        if finished is None:
            clear(parts)
        mode = "w+" if finished is None else "r+"
        lists = Lists(
            *(
                np.lib.format.open_memmap(place, mode, dtype, shape)
                for place, (shape, dtype) in zip(places, kinds, strict=True)
            )
        )
        if finished is None:
            journal.start(header)
        done = {entry["batch"] for entry in finished or ()}
        _fill(recommender, people, wanted, lists, work, journal, show_progress, done)
        n_rows = 0
        with written_whole(output) as draft, FORMATS[output.suffix.lower()](draft) as write:
            for table in tables(recommender, people, lists):
                write(table)
                n_rows += len(table)
        del lists
        remove(parts)
    return n_rows


def _fill(
    recommender: Recommender,
    people: People,
    wanted: Wanted,
    lists: Lists,
    work: Work,
    journal: Journal | None,
    show_progress: bool,
    finished: set[int] | frozenset[int] = frozenset(),
) -> None:
    plan = recommender.plan(people)
    batches = {number: batch for number, batch in enumerate(plan) if number not in finished}
    n_done = sum(len(plan[number].rows) for number in finished)
    with tqdm(
        total=len(people.names), initial=n_done, desc="lists", unit=" users", disable=not show_progress
    ) as progress:
        for number, part in work(recommender, people, wanted, batches):
            lists.put(plan[number], part)
            if journal is not None:
                journal.add([{"batch": number}])
            progress.update(len(plan[number].rows))


def _digest(recommender: Recommender, people: People, wanted: Wanted) -> bytes:
    """Of all that lists depend on but the model."""
    names = columns_digest([str(name) for name in people.names.tolist()])
    arrays = (people.users, people.rows, people.histories.indptr, people.histories.items)
    ids = recommender.candidates(wanted).ids
    how = repr((wanted.k, wanted.exclude_seen, wanted.min_score, people.of_log, people.column))
    how += "" if recommender.approximation is None else " approximate"
    return digest(
        names.digest(), *(array.astype(np.int64).tobytes() for array in (*arrays, ids)), how.encode()
    ).digest()
