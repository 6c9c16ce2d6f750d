"""Fetching the images of a catalogue: politely, again after failures, and never from anywhere else."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from tqdm import tqdm

from recbole_perpeft.convert.images import file_stem
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.data.photos.images import MAX_FILE_BYTES

HOSTS = ("media-amazon.com", "images-amazon.com", "ssl-images-amazon.com")
N_THREADS = 8
N_TRIES = 4
TIMEOUT = 30  # seconds
PAUSE = 2.0  # seconds before the second try; doubled before each further one
MOST_IN_A_ROW = 100  # failures after which no more is asked for
# Answers after which asking again may help.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _SameHosts(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, address):
        check_address(address)
        return super().redirect_request(request, file, code, message, headers, address)


class Pace:
    """Lets calls pass at most so often, over all threads."""

    def __init__(self, per_second: float):
        if not per_second > 0:
            raise PerPEFTError(f"requests_per_second: {per_second} is not above 0")
        self._gap = 1 / per_second
        self._lock = Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)


def check_address(address: str) -> None:
    """Allow the shop's image servers alone: metadata from outside must not make us call other machines.

    Raises:
        PerPEFTError: another address.
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not any(host == name or host.endswith(f".{name}") for name in HOSTS):
        raise PerPEFTError(f"{address} is not on {', '.join(HOSTS)}")


def fetch(address: str) -> bytes:
    """The bytes at an address.

    Raises:
        OSError, http.client.HTTPException: it cannot be had.
        PerPEFTError: it, or where it leads, is not on the shop's servers, is no image, or there is too much of it.
    """
    check_address(address)
    opener = urllib.request.build_opener(_SameHosts)
    with opener.open(address, timeout=TIMEOUT) as answer:
        kind = answer.headers.get_content_type()
        data = answer.read(MAX_FILE_BYTES + 1)
        missing = answer.length  # of what the answer announced; a connection that breaks off is no error of `read`
    if len(data) > MAX_FILE_BYTES:
        raise PerPEFTError(f"{address}: more than {MAX_FILE_BYTES:,} bytes")
    if kind.startswith("text/"):
        raise PerPEFTError(f"{address}: {kind} and no image")
    if missing:
        raise OSError(f"{address}: cut off, {missing:,} bytes are missing")
    return data


def _is_final(error: Exception) -> bool:
    """Whether asking again cannot help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code not in TRANSIENT
    return isinstance(error, (ValueError, http.client.InvalidURL))


def download_images(
    addresses: dict[str, str],
    folder: Path,
    requests_per_second: float,
    fetch_bytes: Callable[[str], bytes] = fetch,
    show_progress: bool = False,
) -> dict[str, str]:
    """Fetch images to `<item id>.jpg`. What is there already is not asked for: an interrupted run goes on.

    Args:
        addresses: by item id.
        folder: where to keep them.
        requests_per_second: at most.
        fetch_bytes: how to fetch one.
        show_progress: show a bar.

    Returns:
        Why an image could not be had, by item id.

    Raises:
        PerPEFTError: the disk does not take an image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pace, failed_in_a_row = Pace(requests_per_second), 0

    def get(token: str) -> str:
        nonlocal failed_in_a_row
        target = folder / f"{file_stem(token)}.jpg"
        if target.is_file():
            return ""
        if failed_in_a_row >= MOST_IN_A_ROW:
            return f"not asked for, as {MOST_IN_A_ROW} in a row could not be had"
        reason = ""
        for attempt in range(N_TRIES):
            pace.wait()
            try:
                data = fetch_bytes(addresses[token])
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                if _is_final(error):
                    return reason
                if attempt == N_TRIES - 1:
                    failed_in_a_row += 1
                    return reason
                time.sleep(PAUSE * 2**attempt)
            else:
                failed_in_a_row = 0
                with written_whole(target) as draft:
                    draft.write_bytes(data)
                return ""
        return reason

    with ThreadPoolExecutor(N_THREADS) as threads:
        results = tqdm(threads.map(get, addresses), total=len(addresses), desc="Downloads", disable=not show_progress)
        failures = {token: reason for token, reason in zip(addresses, results, strict=True) if reason}
    if failures:
        example, reason = next(iter(failures.items()))
        LOGGER.warning(f"{len(failures)} images could not be fetched, as that of {example}: {reason}")
    return failures
