"""Pickles from outside, read without letting them run anything.

A pickle is a program. Before it runs, its instructions are compared with those that build plain data: it can then
neither import nor call. A second check stands behind the first, in the unpickler itself.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.files import read_regular

MAX_PICKLE_BYTES = 4 * 2**30
_NUMBERS = "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
_TEXTS = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_BYTES = "BINBYTES SHORT_BINBYTES BINBYTES8"
_CONTAINERS = (
    "EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "EMPTY_SET ADDITEMS FROZENSET"
)
_MACHINE = "PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
PLAIN_INSTRUCTIONS = frozenset(" ".join((_NUMBERS, _TEXTS, _BYTES, _CONTAINERS, _MACHINE)).split())
OBJECT_INSTRUCTIONS = PLAIN_INSTRUCTIONS | {"GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD"}
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_LOADS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NESTING = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
MAX_PARTS, MAX_DEPTH = 10_000_000, 200  # of a tuple
_LEAF = (1, 0)
_LARGEST = 2**63

STORED_IMAGE = "LMDB_Image"
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def _effect(instruction: pickletools.OpcodeInfo) -> tuple[int, bool, list[tuple[int, int] | None]]:
    """How many values an instruction takes, whether also all down to a mark, and what it leaves."""
    before, has_mark = instruction.stack_before, pickletools.markobject in instruction.stack_before
    given = [None if kind is pickletools.markobject else _LEAF for kind in instruction.stack_after]
    return len(before) - 2 * has_mark, has_mark, given  # the mark, and what lies on it


_EFFECTS = {instruction.name: _effect(instruction) for instruction in pickletools.opcodes}


class UnsafePickleError(PerPEFTError):
    """The pickle would do more than hold data, or is damaged."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it names an object of another program")


class _ImageUnpickler(_PlainUnpickler):
    """Makes an object without methods of what the authors' scripts called `LMDB_Image`."""

    def find_class(self, module: str, name: str) -> Any:
        if name != STORED_IMAGE:
            return super().find_class(module, name)
        # A class of its own for each pickle: a pickle can set attributes of a class.
        return type(STORED_IMAGE, (), {})


def load_plain(path: Path) -> Any:
    """What a pickle of dictionaries, lists, texts and numbers holds.

    Raises:
        PerPEFTError: the file cannot be read.
        UnsafePickleError: it holds anything else.
    """
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise UnsafePickleError(f"{path}: larger than {MAX_PICKLE_BYTES:,} bytes")
        data = read_regular(path)
    except OSError as error:
        raise PerPEFTError(f"cannot read {path}: {error.strerror}") from error
    return _load(data, str(path), PLAIN_INSTRUCTIONS, _PlainUnpickler)


def load_stored_image(data: bytes, source: str) -> dict[str, Any]:
    """The attributes of one pickled `LMDB_Image`.

    Args:
        data: the pickle.
        source: where it stands, for messages.

    Raises:
        UnsafePickleError: it holds anything else.
    """
    stored = _load(data, source, OBJECT_INSTRUCTIONS, _ImageUnpickler)
    if type(stored).__name__ != STORED_IMAGE:
        raise UnsafePickleError(f"{source}: holds no {STORED_IMAGE}")
    return vars(stored)


def shown(value: Any) -> str:
    """A value of a pickle for a message: cut, however large or deep it is."""
    try:
        return _SHORT.repr(value)
    except Exception:  # numbers of too many digits, for instance
        return f"a value of the type {type(value).__name__}"


def text_in(source: Path, place: str, value: Any) -> str:
    """A value that has to be a text.

    Args:
        source: the pickle, for messages.
        place: where the value stands in it.
        value: what stands there.

    Raises:
        PerPEFTError: it is another value, or not Unicode.
    """
    if not isinstance(value, str):
        raise PerPEFTError(f"{source}: {place} is {shown(value)}, not a text; get the file again")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PerPEFTError(f"{source}: {place} is {shown(value)}, which is not Unicode") from error
    return value


def number_in(source: Path, place: str, value: Any) -> float:
    """A value that has to be a finite number of usual size; arguments as in `text_in`.

    Raises:
        PerPEFTError: it is another value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise PerPEFTError(f"{source}: {place} is {shown(value)}, not a usual number; get the file again")
    return value


class _Nests:
    """Follows instructions of a pickle, to bound what looking at a tuple takes.

    A key is looked at with all that is in it. Tuples that share their parts grow with every instruction to twice the
    work, and deep ones leave no room for calls. Other containers are no keys, whatever is in them.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, int] | None] = []  # parts and depth of a value; None for a mark
        self._memo: dict[int, tuple[int, int] | None] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Raises `pickle.UnpicklingError`, or what a damaged pickle leads to."""
        stack = self._stack
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _STORES:
            self._memo[int(argument)] = stack[-1]
        elif name in _LOADS:
            stack.append(self._memo[int(argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            n_taken, has_mark, given = _EFFECTS[name]
            if n_taken or has_mark:
                parts = self._taken(n_taken, has_mark)
                given = [_nest(parts)] if name in _NESTING else given
            stack += given

    def _taken(self, n: int, has_mark: bool) -> list[tuple[int, int]]:
        parts: list[tuple[int, int]] = []
        if has_mark:
            while (part := self._stack.pop()) is not None:
                parts.append(part)
        for _ in range(n):
            parts.append(self._stack.pop() or _LEAF)
        return parts


def _nest(parts: list[tuple[int, int]]) -> tuple[int, int]:
    n_parts = 1 + sum(n for n, _ in parts)
    depth = 1 + max((depth for _, depth in parts), default=0)
    if n_parts > MAX_PARTS or depth > MAX_DEPTH:
        raise pickle.UnpicklingError("its tuples are nested too often")
    return n_parts, depth


def _load(data: bytes, source: str, allowed: frozenset[str], unpickler: type[pickle.Unpickler]) -> Any:
    try:
        nests = _Nests()
        for place, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if instruction.name not in allowed:
                raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
            # A store far beyond the objects there are would only take memory.
            if instruction.name in _STORES and argument is not None and argument > place:
                raise pickle.UnpicklingError("it is damaged")
            nests.follow(instruction.name, argument)
        return unpickler(io.BytesIO(data), encoding="utf-8").load()
    except MemoryError:
        raise
    except Exception as error:  # an unpickler meets a damaged pickle with whatever it stumbles over
        raise UnsafePickleError(
            f"{source}: this pickle is not read, as it may hold plain data alone ({error}); get the file again"
        ) from error
