"""Work on files from outside that may hang, crash or take all memory: a child process does it, which can be ended."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

Result = TypeVar("Result")
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import serve; serve(*sys.argv[2:])"
_FAREWELL = 10  # seconds in which the system takes down a process that has ended


class ApartError(Exception):
    """The child process was ended; the message says what the work has done, as in "takes longer than 60 seconds"."""


def damaged(path: Path, error: ApartError) -> str:
    """What to say of a file that the work was on."""
    return f"{path}: reading it {error}: the file is damaged or cut off; copy or download it again"


class Apart:
    """Calls functions in a child process, one at a time; the next call after one that ended it starts another.

    The child starts with the first call and is kept. It sees to the limits itself, so that they hold even where this
    process is killed meanwhile.

    Args:
        seconds: the longest that a call may take.
        memory: bytes that the work may take; `None` for any number.
    """

    def __init__(self, seconds: float, memory: int | None = None) -> None:
        self._seconds, self._memory = seconds, memory
        self._lock = Lock()
        self._end: weakref.finalize[Any, Any] | None = None

    def __call__(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function of a module makes of some arguments, all of which are pickled.

        Raises:
            ApartError: the call took too long or too much memory, or crashed.
            Exception: what the function raises.
        """
        with self._lock:
            if self._end is None:
                self._start()
            try:
                _send(self._socket, (function, arguments))
                is_result, value = _receive(self._socket)
            except OSError as error:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_FAREWELL)
                raise ApartError(self._told(self._stop())) from error
            except BaseException:  # of an interrupted call the answer would come to the next one
                self._stop()
                raise
        if not is_result:
            raise value
        return value

    def _start(self) -> None:
        self._socket, end = socket.socketpair()
        program = _PROGRAM.format(module=__name__)
        limits = [str(end.fileno()), str(self._seconds), str(self._memory or 0)]
        with end:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(sys.path), *limits],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                pass_fds=[end.fileno()],
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        self._end = weakref.finalize(self, _ended, self._process, self._socket)

    def _stop(self) -> int:
        end, self._end = self._end, None
        return (end and end()) or 0

    def _told(self, status: int) -> str:
        if status == -signal.SIGALRM:
            return f"takes longer than {self._seconds:g} seconds"
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        reason = ", perhaps for lack of memory" if status == -signal.SIGKILL else ""
        return f"ends the process that does it ({name}{reason})"


def _ended(process: subprocess.Popen, connection: socket.socket) -> int:
    connection.close()
    process.kill()
    return process.wait()


def serve(number: str, seconds: str, memory: str) -> None:
    """What the child does: answers calls until nobody is there to send them.

    Args:
        number: of the open file by which calls come.
        seconds, memory: as in `Apart`; 0 for any memory.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the system ends the process
    connection = socket.socket(fileno=int(number))
    is_limited = False
    with suppress(ConnectionError):
        while True:
            function, arguments = _receive(connection)
            if not is_limited and int(memory):
                _limit_memory(int(memory))
                is_limited = True
            signal.setitimer(signal.ITIMER_REAL, float(seconds))
            try:
                answer = (True, function(*arguments))
            except MemoryError:
                limit = f"{int(memory) / 2**20:,.0f} MiB of memory" if int(memory) else "the memory that there is"
                answer = (False, ApartError(f"takes more than {limit}"))
            except Exception as error:
                answer = (False, error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(connection, answer)


def _send(connection: socket.socket, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, 5, buffer_callback=buffers.append)), *(each.raw() for each in buffers)]
    connection.sendall(struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts)))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    """Raises `ConnectionError` where nobody sends any more."""
    (n_parts,) = struct.unpack("<Q", _received(connection, 8))
    head, *buffers = [
        _received(connection, size) for size in struct.unpack(f"<{n_parts}Q", _received(connection, 8 * n_parts))
    ]
    return pickle.loads(head, buffers=buffers)


def _received(connection: socket.socket, size: int) -> bytearray:
    part = bytearray(size)
    rest = memoryview(part)
    while rest:
        if not (n := connection.recv_into(rest)):
            raise ConnectionResetError
        rest = rest[n:]
    return part


def _limit_memory(more: int) -> None:
    """Take no more memory than now and some bytes, where the system has such a limit."""
    status = Path("/proc/self/statm")
    if status.is_file():
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))
