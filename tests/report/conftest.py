"""A real headless Chromium for the tests of the pages."""

import json

import pytest

from tests import browsers
from tests.report.made_report import made_report
from utils.report.html import write_report


@pytest.fixture(scope="session")
def profile(tmp_path_factory):
    """The folder of the browser's profile, into which it saves files too."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="session")
def driver(profile):
    with browsers.started(profile) as found:
        yield found


@pytest.fixture
def page(driver, tmp_path):
    """page(runs) opens a page and checks that nothing went wrong in it and nothing was fetched."""
    opened = []

    def open_page(runs=(), own_ids=()):
        path = tmp_path / "page.html"
        report = made_report(runs)
        for point, own_id in zip(report.points, own_ids, strict=False):
            point["own_id"] = own_id
        write_report(path, report)
        driver.get("about:blank")
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # of pages before this one
        driver.get(path.as_uri())
        opened.append(path.as_uri())
        browsers.drawn(driver)  # charts are drawn at their width
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
