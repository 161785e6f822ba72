"""A real headless Chromium for the tests of the pages."""

import json
import shutil

import pytest

from tests.report.made_report import made_report
from utils.report.html import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=1280,900"
).split()


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """The folder that the browser saves to."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(tmp_path_factory, downloads):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium (requirements-dev.txt)"
    )
    if not (BROWSER and DRIVER):
        pytest.skip("needs chromium, chromium-browser or google-chrome, and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(driver, tmp_path):
    """page(runs) opens a page and checks that nothing went wrong in it and nothing was fetched."""
    opened = []

    def open_page(runs=()):
        path = tmp_path / "page.html"
        write_report(path, made_report(runs))
        driver.get("about:blank")
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # of pages before this one
        driver.get(path.as_uri())
        opened.append(path.as_uri())
        drawn(driver)
        return driver

    yield open_page
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent" and m["params"]["documentURL"] in opened
    ]  # not what a new browser opens by itself
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == opened


def drawn(driver):
    """Wait until charts have been drawn at their width."""
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 0))")
