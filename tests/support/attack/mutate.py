"""Mutations of bytes, of nested values and of files as such; every one is drawn from a `random.Random`."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (-1, 0, 1, 2, 3.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30)
TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "1e400",
    "nan",
    "null",
    "true",
    "../..",
    "/",
    "a\tb",
    "a\nb",
    "\0",
    "é\u202eb",
    "x" * 5000,
)
STRUCTURES = (None, True, False, [], {}, [None], [[]], [[[[]]]], {"x": 1}, {"": None}, ["x"] * 300, [-1, "x", None])
HOSTILE = (*NUMBERS, *TEXTS, *STRUCTURES)
PIECES = (
    *(text.encode() for text in TEXTS),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b"\t\t", b'"', b"'", b",", b"{", b"}", b"[", b"\\", b"#"),
    *("\u2028\u0085\x0b\x0c".encode(), b"-inf", b"0x10", b"1_000", b"9" * 400, b"&a *a", b"!!python/object:os.system"),
)
MOST_BYTES = 200


def mutated_bytes(rng: Random, data: bytes) -> tuple[str, bytes]:
    """One change of bytes at a random place, and what it is."""
    change = rng.choice(_OF_BYTES)
    start = rng.randrange(len(data) + 1)
    return f"{change.__name__} at byte {start}", change(rng, data, start)


def flip(rng: Random, data: bytes, start: int) -> bytes:
    flipped = bytearray(data)
    for place in range(start, min(start + rng.choice((1, 1, 1, 8)), len(data))):
        flipped[place] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def insert(rng: Random, data: bytes, start: int) -> bytes:
    return data[:start] + rng.choice(PIECES) + data[start:]


def overwrite(rng: Random, data: bytes, start: int) -> bytes:
    piece = rng.choice(PIECES)
    return data[:start] + piece + data[start + len(piece) :]


def prepend(rng: Random, data: bytes, start: int) -> bytes:
    return rng.choice(PIECES) + data


def append(rng: Random, data: bytes, start: int) -> bytes:
    return data + rng.choice((*PIECES, data[-MOST_BYTES:], data))


def remove(rng: Random, data: bytes, start: int) -> bytes:
    return data[:start] + data[start + rng.randint(1, MOST_BYTES) :]


def repeat(rng: Random, data: bytes, start: int) -> bytes:
    stop = start + rng.randint(1, MOST_BYTES)
    return data[:stop] + data[start:]


def zero(rng: Random, data: bytes, start: int) -> bytes:
    stop = min(start + rng.randint(1, MOST_BYTES), len(data))
    return data[:start] + bytes(stop - start) + data[stop:]


def cut(rng: Random, data: bytes, start: int) -> bytes:
    return data[:start]


def empty(rng: Random, data: bytes, start: int) -> bytes:
    return b""


_OF_BYTES: tuple[Callable[[Random, bytes, int], bytes], ...] = (
    *(flip, insert, overwrite, prepend, append, remove, repeat, zero, cut),
    *(flip, insert, overwrite, remove, repeat, empty),
)


def mutated_lines(rng: Random, data: bytes, separator: bytes) -> tuple[str, bytes]:
    """One change of the lines or cells of a table, and what it is."""
    lines = data.split(b"\n")
    row = rng.randrange(len(lines))
    kind = rng.choice(
        ("cell", "cell", "cell", "drop", "double", "swap", "header", "blank", "ends", "utf-16", "column")
    )
    if kind == "cell":
        cells = lines[row].split(separator)
        place = rng.randrange(len(cells))
        cells[place] = rng.choice((*PIECES, *(str(number).encode() for number in NUMBERS)))
        lines[row] = separator.join(cells)
    elif kind == "drop":
        del lines[row]
    elif kind == "double":
        lines.insert(row, lines[row])
    elif kind == "swap":
        other = rng.randrange(len(lines))
        lines[row], lines[other] = lines[other], lines[row]
    elif kind == "header":
        row = 0
        lines[0] = mutated_bytes(rng, lines[0])[1]
    elif kind == "blank":
        lines.insert(row, rng.choice((b"", b" ", separator, separator * 2)))
    elif kind == "ends":
        return "line ends", rng.choice((b"\r\n", b"\r")).join(lines)
    elif kind == "utf-16":
        return "UTF-16", data.decode(errors="replace").encode("utf-16")
    else:
        place = rng.randrange(3)
        lines = [separator.join(_without(line.split(separator), place)) for line in lines]
    return f"{kind} in line {row + 1}", b"\n".join(lines)


def _without(cells: list[bytes], place: int) -> list[bytes]:
    return cells[:place] + cells[place + 1 :]


def paths_of(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where the values of nested mappings and lists are."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def mutated_tree(rng: Random, tree: Any) -> tuple[str, Any]:
    """One change of a nested value, and what it is."""
    changed = copy.deepcopy(tree)
    paths = list(paths_of(changed))
    if not paths or rng.random() < 0.03:
        value = rng.choice(HOSTILE)
        return f"all is {value!r:.40}", value
    path = rng.choice(paths)
    if rng.random() < 0.5:  # lists of thousands, as the words of a tokenizer are, are not to have all
        path = path[: rng.randint(1, min(2, len(path)))]
    *above, key = path
    holder = changed
    for step in above:
        holder = holder[step]
    kind = rng.choice(("replace", "replace", "replace", "delete", "rename", "wrap", "swap"))
    where = f"{kind} of {'.'.join(map(str, path)):.80}"
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", "", "x" * 300, str(key).upper()))] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = rng.choice(([holder[key]], {"x": holder[key]}, [holder[key]] * 3, str(holder[key])))
    elif kind == "swap":
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        value = rng.choice(HOSTILE)
        holder[key] = value
        where += f" by {value!r:.40}"
    return where, changed


def misplaced(rng: Random, path: Path) -> str:
    """Something else stands where a file was; what it is."""
    kind = rng.choice(("missing", "folder", "pipe", "link to nowhere", "link to itself", "device"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to({"link to nowhere": "/nowhere/at all", "link to itself": path.name}.get(kind, "/dev/zero"))
    return kind


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder with what `misplaced` leaves, of which pipes are made anew."""

    def copy_one(one, other):
        return os.mkfifo(other) if Path(one).is_fifo() else shutil.copy2(one, other, follow_symlinks=False)

    return Path(shutil.copytree(source, target, symlinks=True, copy_function=copy_one))
