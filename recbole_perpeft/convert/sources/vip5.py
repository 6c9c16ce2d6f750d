"""The data sets of VIP5: toys, beauty, sports, clothing (github.com/jeykigung/VIP5)."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_perpeft.convert.events import Events, batched_events
from recbole_perpeft.convert.reading.pickles import load_plain, number_in, text_in
from recbole_perpeft.convert.source import ExpectedCounts, Source
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import path_inside, read_regular
from recbole_perpeft.core.lines import line_error, text_lines
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.data.files.tables import encodable, text_of
from recbole_perpeft.store.arrays import read_array, write_array

SEQUENCES, MAPS, META, EXPLANATIONS = "sequential_data.txt", "datamaps.json", "meta.json.gz", "exp_splits.pkl"
# Table of the paper (arXiv 2305.14302), by the name of the folder.
EXPECTED = {
    "clothing": ExpectedCounts(39_387, 23_033, 278_677),
    "sports": ExpectedCounts(35_598, 18_357, 296_337),
    "beauty": ExpectedCounts(22_363, 12_101, 198_502),
    "toys": ExpectedCounts(19_412, 11_924, 167_597),
}
MAX_META_LINE = 2**20
# Column of the side file by field of the authors' rows.
EXPLAINED = {
    "reviewerID": "user_id",
    "asin": "item_id",
    "overall": "rating",
    "unixReviewTime": "timestamp",
    "summary": "headline",
    "feature": "feature",
    "explanation": "explanation",
    "reviewerName": "user_name",
}
_NUMBERS = ("rating", "timestamp")
_NEEDED = ("user_id", "item_id", "explanation")


class VIP5Source(Source):
    """The VIP5 authors' data: one of the folders toys, beauty, sports, clothing.

    Items and users get their raw ids. The authors' numbers follow the first appearance in the sequences, test items
    included: a model that reads them as numbers learns from the test data.

    Args:
        folder: with `sequential_data.txt`, `datamaps.json`, and perhaps `meta.json.gz` and `exp_splits.pkl`.
        features: folder of one `<item>.npy` an item; `None` for none.
        show_progress: show bars.
    """

    name = "vip5"
    example = "--input=data/toys --features=features/vitb32_features/toys --output=dataset_atomic/vip5_toys"

    def __init__(self, folder: Path, features: Path | None = None, show_progress: bool = False):
        self._folder, self._features, self._show_progress = folder, features, show_progress
        for name in (SEQUENCES, MAPS):
            if not (folder / name).is_file():
                raise PerPEFTError(f"{folder / name} is missing; name the folder that holds it")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=Path, required=True, help="the authors' folder data/<set>")
        parser.add_argument("--features", type=Path, help="the folder features/<type>_features/<set>")

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], show_progress: bool) -> VIP5Source:
        return cls(arguments["input"], arguments["features"], show_progress)

    def input_files(self) -> list[Path]:
        paths = (self._folder / name for name in (SEQUENCES, MAPS, META, EXPLANATIONS))
        return [path for path in paths if path.is_file()]

    def events(self) -> Iterator[Events]:
        return batched_events(self._folder / SEQUENCES, self._rows())

    def _rows(self) -> Iterator[tuple[int, str, str]]:
        path = self._folder / SEQUENCES
        user_of, item_of = self._maps()
        for line, text in text_lines(path, self._show_progress):
            numbers = text.split()
            if not numbers:
                continue
            if len(numbers) < 2 or numbers[0] not in user_of:
                raise line_error(path, line, f"not of the form: user item item ..., users as in {MAPS}")
            for item in numbers[1:]:
                if item not in item_of:
                    raise line_error(path, line, f"the item {item} is not in {MAPS}")
                yield line, user_of[numbers[0]], item_of[item]

    def _maps(self) -> tuple[dict[str, str], dict[str, str]]:
        """Raw ids of users and of items by number."""
        path = self._folder / MAPS
        try:
            maps = json.loads(read_regular(path))
            users, items = maps["id2user"], maps["id2item"]
            texts = [*users.values(), *items.values()]
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise PerPEFTError(f"{path}: not JSON with the maps id2user and id2item ({error!r})") from error
        if not all(isinstance(text, str) for text in texts):
            raise PerPEFTError(f"{path}: id2user and id2item must map texts to texts")
        for text in texts:
            encodable(path, 1, text, "id")
        return users, items

    def texts(self, tokens: Sequence[str]) -> dict[str, dict[str, str]]:
        path = self._folder / META
        if not path.is_file():
            LOGGER.warning(f"{path} is missing; items get no titles")
            return {"title": {}}
        wanted = set(tokens)
        titles: dict[str, str] = {}
        for line, text in text_lines(path, self._show_progress):
            if not text.strip():
                continue
            item = _literal(path, line, text)
            if isinstance(item.get("asin"), str) and item["asin"] in wanted:
                titles.setdefault(item["asin"], text_of(path, line, item.get("title"), "title"))
        return {"title": titles}

    def side_files(self, folder: Path, name: str, tokens: Sequence[str], users: Sequence[str]) -> None:
        """Write what belongs to users and items that stay.

        This is `<name>.explanations.jsonl`, `<name>.features.npy` [n, d] and `<name>.features.txt` (its n items).
        """
        if (self._folder / EXPLANATIONS).is_file():
            self._write_explanations(folder / f"{name}.explanations.jsonl", set(tokens), set(users))
        if self._features is not None:
            paths = {token: path_inside(self._features, f"{token}.npy", f"item {token!r}") for token in tokens}
            with_features = [token for token, path in paths.items() if path.is_file()]
            features = _read_features(self._features, [paths[token] for token in with_features])
            write_array(folder / f"{name}.features.npy", features)
            lines = "".join(f"{token}\n" for token in with_features)
            (folder / f"{name}.features.txt").write_text(lines, encoding="utf-8")
            LOGGER.info(f"{len(with_features):,} of {len(tokens):,} items have features of {features.shape[1]}")

    def _write_explanations(self, target: Path, tokens: set[str], users: set[str]) -> None:
        path = self._folder / EXPLANATIONS
        splits = load_plain(path)
        with open(target, "w", encoding="utf-8", newline="\n") as file:
            for split in ("train", "val", "test"):
                rows = splits.get(split) if isinstance(splits, dict) else None
                if not isinstance(rows, list):
                    raise PerPEFTError(f"{path}: has no list {split!r}")
                for index, row in enumerate(rows):
                    place = f"row {index} of {split!r}"
                    if not isinstance(row, dict) or not {"reviewerID", "asin"} <= row.keys():
                        raise PerPEFTError(f"{path}: {place} has no reviewerID or asin")
                    stays = text_in(path, f"asin in {place}", row["asin"]) in tokens
                    stays &= text_in(path, f"reviewerID in {place}", row["reviewerID"]) in users
                    if stays and "explanation" in row:
                        chosen = {
                            column: _explained(path, f"{field} in {place}", column, row[field])
                            for field, column in EXPLAINED.items()
                            if field in row
                        }
                        file.write(json.dumps({"split": split, **chosen}) + "\n")

    def expected(self) -> ExpectedCounts:
        return EXPECTED.get(self._folder.name, ExpectedCounts())


def _explained(path: Path, place: str, column: str, value: Any) -> str | float | None:
    if value is None and column not in _NEEDED:
        return None
    return number_in(path, place, value) if column in _NUMBERS else text_in(path, place, value)


def _read_features(folder: Path, paths: Sequence[Path]) -> np.ndarray:
    vectors: list[np.ndarray] = []
    for path in paths:
        try:
            vector = read_array(path)
        except (OSError, ValueError) as error:
            raise PerPEFTError(f"{path}: not an array that can be read ({error})") from error
        if vector.dtype.kind != "f" or (vectors and vector.size != vectors[0].size):
            raise PerPEFTError(f"{path}: {vector.dtype} {vector.shape} is not a vector like those before it")
        vectors.append(vector.astype(np.float32).reshape(-1))
    if not vectors:
        raise PerPEFTError(f"{folder}: no file is named after an item, as in <item>.npy")
    return np.stack(vectors)


def _literal(path: Path, line: int, text: str) -> dict[str, Any]:
    """The Python dictionary of a line, read without evaluating anything.

    Raises:
        PerPEFTError: the line holds something else.
    """
    if len(text) > MAX_META_LINE:
        raise line_error(path, line, f"longer than {MAX_META_LINE:,} characters")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise line_error(path, line, f"not a dictionary of plain values ({error})") from error
    if not isinstance(value, dict):
        raise line_error(path, line, "not a dictionary {...}")
    return value
