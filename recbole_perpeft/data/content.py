"""Texts and images of every item of a data set, keyed by item token.

The item file is read raw: a text reaches the tokenizer exactly as it is written, with its spacing, quotes and
entities.
"""

import copy
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recbole_perpeft.core.digest import Digest, columns_digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import composed, is_inside, read_regular
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import USUAL_LIMITS, PhotoLimits
from recbole_perpeft.data.content_report import ContentReport, Problem
from recbole_perpeft.data.photos.images import IMAGE_FOLDER, choose_images, file_stamp, is_no_file_name

TITLE, IMAGE = "title", "image"
PAD_TOKEN = "[PAD]"
MISSING_CONTENT = ("error", "blank")


class ItemContent:
    """The items of a data set in the order of its item file, and what is wrong with them.

    Reading finds what can be found without opening an image. Images are decoded once, by
    :class:`~recbole_perpeft.store.inputs.ContentCache`, which adds what it finds and calls :meth:`check`: so one error
    tells everything.

    Attributes:
        name: name of the data set.
        folder: its folder.
        tokens: item ids, unique.
        fields: what was read of each item: `image`, and columns of text.
        texts: texts of each item by field, as written.
        titles: the texts of the field `title`; empty ones where that field was not asked for.
        image_paths: image file of each item, `None` if it has none or images were not asked for.
        missing_content: `error` or `blank`.
        report: what is wrong so far.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        tokens: list[str],
        titles: list[str],
        image_paths: list[Path | None],
        missing_content: str = "error",
        report: ContentReport | None = None,
        texts: dict[str, list[str]] | None = None,
        fields: Sequence[str] = (TITLE, IMAGE),
    ):
        if missing_content not in MISSING_CONTENT:
            raise PerPEFTError(f"missing_content: {missing_content!r} is not one of {', '.join(MISSING_CONTENT)}.")
        self.name = name
        self.folder = folder
        self.tokens = tokens
        self.titles = titles
        self.texts = {TITLE: titles} if texts is None else texts
        self.fields = tuple(fields)
        self.image_paths = image_paths
        self.missing_content = missing_content
        self.report = ContentReport() if report is None else report
        self.limits = USUAL_LIMITS

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        item_tokens: Sequence[str],
        missing_content: str = "error",
        fields: Sequence[str] = (TITLE, IMAGE),
        limits: PhotoLimits = USUAL_LIMITS,
    ) -> "ItemContent":
        """Read `<folder>/<name>.item` and find the images.

        The item file is tab separated UTF-8 with a header of `field:type`; it needs the columns `item_id` and those
        of the text fields asked for, may have `image` (a path relative to the folder), and may have others, which are
        ignored. Nothing is quoted. An item without such a path has the image `images/<item_id>`, with a
        suffix (see `IMAGE_SUFFIXES`) or without; names are compared in one form of Unicode.

        Args:
            folder: folder of the data set.
            name: name of the data set.
            item_tokens: the item ids that occur in the interactions.
            missing_content: `error`, or `blank` to put blank images and empty titles where there are none.
            fields: what is needed of an item: `image`, and columns of text such as `title`. What is not asked for is
                neither read nor missed.
            limits: of decoding the images.

        Raises:
            PerPEFTError: the item file is missing or has no usable header. All other problems are gathered in
                :attr:`report` and raised by :meth:`check`.
        """
        folder = Path(folder)
        report = ContentReport()
        file = folder / f"{name}.item"
        text_fields = [field for field in fields if field != IMAGE]
        rows = _read_item_file(file, text_fields, report)
        if not rows:
            raise report.error(str(file)) if len(report) else PerPEFTError(f"{file}: lists no items; add them.")
        tokens = [row.token for row in rows]
        texts = {field: [row.texts[i] for row in rows] for i, field in enumerate(text_fields)}
        for field, values in texts.items():
            column = "" if field == TITLE else f" ({field})"
            for token, text in zip(tokens, values, strict=True):
                if not text.strip():
                    report.add(Problem.NO_TITLE, f"{token!r}{column}")
        image_paths: list[Path | None] = [None] * len(rows)
        if IMAGE in fields:
            image_paths = _find_images(folder, rows, report)
        _compare_with_interactions(tokens, item_tokens, file, report)
        titles = texts.get(TITLE, [""] * len(rows))
        content = cls(name, folder, tokens, titles, image_paths, missing_content, report, texts, fields)
        content.limits = limits
        return content

    def read_as_titles(self, field: str) -> "ItemContent":
        """The same items with the texts of a field in the place of titles; with `image`, they stay as they are."""
        view = copy.copy(self)
        view.titles = self.texts.get(field, self.titles)
        return view

    def check(self, damaged_images: dict[int, str]) -> None:
        """Raise, or with `missing_content: blank` log, everything that is wrong.

        Args:
            damaged_images: why an image cannot be used, by row.

        Raises:
            PerPEFTError: something is wrong that blank content may not stand in for.
        """
        damaged = ContentReport()
        for row, reason in sorted(damaged_images.items()):
            path = self.image_paths[row]
            place = path and path.relative_to(self.folder)
            damaged.add(Problem.DAMAGED, f"{self.tokens[row]!r} ({place}: {reason})")
        report = self.report.merged(damaged)
        if not len(report):
            return
        source = f"{self.folder / self.name}.item"
        if self.missing_content == "error" or not report.may_be_blank:
            raise report.error(source)
        LOGGER.warning(
            f"{source}: blank images and empty titles stand in for {len(report)} problem(s):\n{report.summary()}"
        )

    def digest(self) -> Digest:
        """Hash state of the tokens and titles; no two tables share it."""
        return columns_digest(self.tokens, self.titles)

    def image_stamps(self, rows: slice = slice(None)) -> np.ndarray:
        """Stamp of every image of some rows, see :func:`file_stamp`: int64 [n, 3]."""
        return np.array([file_stamp(path) for path in self.image_paths[rows]], dtype=np.int64).reshape(-1, 3)


class _ItemRow(NamedTuple):
    """An item as its line has it: `image` is a path relative to the folder, empty if none is given."""

    token: str
    texts: tuple[str, ...]
    image: str


def _read_item_file(file: Path, text_fields: Sequence[str], report: ContentReport) -> list[_ItemRow]:
    """Every item, the first where an id is repeated; texts in the order of `text_fields`."""
    try:
        # Only "\n" ends a line: `str.splitlines` would also split at characters that titles may hold.
        header, *lines = read_regular(file).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise PerPEFTError(f"{file}: cannot be read ({error.strerror}); it lists the items.") from error
    fields = _read_header(file, header, text_fields)
    n_columns, id_column = len(fields), fields.index("item_id")
    text_columns = [fields.index(field) for field in text_fields]
    image_column = fields.index(IMAGE) if IMAGE in fields else None
    rows: list[_ItemRow] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        try:
            cells = line.decode().split("\t")
        except UnicodeDecodeError as error:
            report.add(Problem.ENCODING, f"line {number} (byte {error.start + 1})")
            continue
        if len(cells) != n_columns:
            report.add(Problem.COLUMNS, f"line {number} ({len(cells)} instead of {n_columns})")
            continue
        token = cells[id_column]
        if not token:
            report.add(Problem.NO_ID, f"line {number}")
        elif token in first_line:
            report.add(Problem.DUPLICATE, f"{token!r} (lines {first_line[token]} and {number})")
        else:
            first_line[token] = number
            texts = tuple(cells[column] for column in text_columns)
            rows.append(_ItemRow(token, texts, "" if image_column is None else cells[image_column]))
    return rows


def _read_header(file: Path, header: bytes, text_fields: Sequence[str]) -> list[str]:
    try:
        columns = header.removesuffix(b"\r").decode().split("\t")
    except UnicodeDecodeError as error:
        raise PerPEFTError(f"{file}: line 1 is not UTF-8; save the file as UTF-8.") from error
    fields = []
    for column in columns:
        field, separator, kind = column.partition(":")
        if not (field and separator and kind):
            raise PerPEFTError(
                f"{file}: line 1: column {column!r} is not of the form field:type, as in 'title:token_seq'."
            )
        if field in fields:
            raise PerPEFTError(f"{file}: line 1: column {field!r} occurs twice; keep one.")
        fields.append(field)
    for field in ("item_id", *text_fields):
        if field not in fields:
            raise PerPEFTError(f"{file}: line 1: column {field!r} is missing among {', '.join(fields)}; add it.")
    return fields


def _find_images(folder: Path, rows: Sequence[_ItemRow], report: ContentReport) -> list[Path | None]:
    """The image file of every item. Folders are listed once: no file is asked for by name."""
    listed = _ListedFolders(folder)
    unnamed = [row.token for row in rows if not row.image]
    named = choose_images(listed.names(IMAGE_FOLDER) or (), unnamed)
    is_without_folder = bool(unnamed) and listed.names(IMAGE_FOLDER) is None
    if is_without_folder:
        report.add(Problem.NO_FOLDER, f"{folder / IMAGE_FOLDER} (for {len(unnamed)} items)")
    paths: list[Path | None] = []
    for token, _, given in rows:
        if given and not is_inside(given):
            report.add(Problem.OUTSIDE, f"{token!r} ({given!r})")
            paths.append(None)
            continue
        relative = listed.find(given) if given else named.get(token)
        if relative is None:
            paths.append(None)
            if given or not is_without_folder:
                kind = Problem.RENAMED if not given and is_no_file_name(token) else Problem.NO_IMAGE
                report.add(kind, f"{token!r} ({given})" if given else repr(token))
        else:
            paths.append(folder / relative if given else folder / IMAGE_FOLDER / relative)
    return paths


class _ListedFolders:
    """Names of the files in folders of a data set, each of which is listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, set[str] | None] = {}
        self._composed: dict[str, dict[str, str]] = {}

    def names(self, relative: str) -> set[str] | None:
        """Names of the files in a folder, `None` if there is no such folder."""
        if relative not in self._names:
            names = _list_files(self._folder / relative)
            self._names[relative] = names
            self._composed[relative] = {composed(name): name for name in sorted(names or ())}
        return self._names[relative]

    def find(self, given: str) -> str | None:
        """The file that a path means, whatever form of Unicode either has; `None` if there is none."""
        for form in dict.fromkeys((given, *(unicodedata.normalize(form, given) for form in ("NFC", "NFD")))):
            parent, name = posixpath.split(posixpath.normpath(form))
            if name in (self.names(parent) or ()):
                return posixpath.join(parent, name)
            if (other := self._composed[parent].get(composed(name))) is not None:
                return posixpath.join(parent, other)
        return None


def _list_files(folder: Path) -> set[str] | None:
    """Names of the files in a folder, `None` if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PerPEFTError(f"{folder}: cannot be listed ({error.strerror}).") from error


def _compare_with_interactions(
    tokens: list[str], item_tokens: Sequence[str], file: Path, report: ContentReport
) -> None:
    known = set(tokens)
    used = {str(token) for token in item_tokens} - {PAD_TOKEN}
    for token in sorted(used - known):
        report.add(Problem.UNKNOWN, repr(token))
    if n_unused := len(known - used):
        LOGGER.warning(
            f"{file}: {n_unused} of {len(known)} items have no interactions that the run keeps; they can be scored as "
            "new items."
        )
