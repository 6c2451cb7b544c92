"""Chromium for tests: the system's own, driven by Playwright, which downloads nothing."""

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

from tests.support.node import UnavailableError

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """Return the path of a Chromium.

    Raises:
        UnavailableError: there is none.
    """
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UnavailableError("Chromium is not installed (Debian: apt-get install chromium-headless-shell)")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium, without a window.

    Raises:
        UnavailableError: there is none.
    """
    path = find_chromium()
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container and root do not have; it opens our own pages only.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
