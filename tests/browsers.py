"""A real headless Chromium for the tests of pages.

    pytestmark = browsers.NEEDED                    # marks tests `browser`, skips them without one
    with browsers.started(folder) as driver: ...

Where XMCKIT_BROWSER_TESTS is `required` a test that was skipped has failed (tests/conftest.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
DRIVER = shutil.which("chromedriver")
MISSING = [
    told
    for told, is_here in (
        ("selenium (requirements-dev.txt)", importlib.util.find_spec("selenium")),
        (f"one of {', '.join(NAMES)}", BROWSER),
        ("chromedriver", DRIVER),
    )
    if not is_here
]
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=1280,900"
).split()


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Any]:
    """A driver of a browser with a new profile, which logs its console and its requests.

    It saves files into the profile's folder `downloads`.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    downloads = {"download.default_directory": str(profile / "downloads")}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def drawn(driver: Any) -> None:
    """Wait until the browser has drawn what scripts changed."""
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 0))")


@contextlib.contextmanager
def screen(driver: Any, width: int, height: int, dark: bool = False) -> Iterator[None]:
    """A screen of that size inside, a phone's where it is narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
