"""Pickles from outside, read without letting them run anything.

A pickle is a program. Before it runs, its instructions are compared with those that build plain data: it can then
neither import nor call. A second check stands behind the first, in the unpickler itself.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError

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
STORED_IMAGE = "LMDB_Image"


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
        data = path.read_bytes()
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


def _load(data: bytes, source: str, allowed: frozenset[str], unpickler: type[pickle.Unpickler]) -> Any:
    try:
        for place, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if instruction.name not in allowed:
                raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
            # A store far beyond the objects there are would only take memory.
            if instruction.name in _STORES and argument is not None and argument > place:
                raise pickle.UnpicklingError("it is damaged")
        return unpickler(io.BytesIO(data), encoding="utf-8").load()
    except MemoryError:
        raise
    except Exception as error:  # an unpickler meets a damaged pickle with whatever it stumbles over
        raise UnsafePickleError(
            f"{source}: this pickle is not read, as it may hold plain data alone ({error}); get the file again"
        ) from error
