"""A real browser for the tests of pages: Chromium, where there is one."""

import shutil
import subprocess

import pytest

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(_BROWSER is None, reason="no Chromium is installed")


def shown(page, profile, milliseconds=2000):
    """The document of a page after its scripts have run, as text.

    Args:
        page: path of the page.
        profile: an empty folder, as the browser's own below `HOME` may not be writable.
        milliseconds: of the page's own clock that scripts have.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    command = [_BROWSER, *flags, f"--virtual-time-budget={milliseconds}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
