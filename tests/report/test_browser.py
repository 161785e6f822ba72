"""The pages in a real headless Chromium: no errors, no requests, and search, sorting, pages and
members work.

python -m pytest -m browser      # skipped where no Chromium with its chromedriver is installed
"""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from utils.metrics import reliability
from utils.report import html, measured, point_table

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="needs selenium (requirements-dev.txt)"
)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="needs chromium, chromium-browser or google-chrome, and chromedriver",
    ),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
).split()
COUNT, LABELS = 120, 30  # three pages


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


def made_data(runs=()):
    """A report with all its sections, of a fusion of two members or of compared runs."""
    rng = np.random.default_rng(0)
    relevance = sp.csr_matrix((rng.random((COUNT, LABELS)) < 0.1).astype(np.float32))
    scores = [sp.csr_matrix(rng.random((COUNT, LABELS))) for _ in runs or (0,)]
    views = [
        point_table.PointViews(
            name, rng.integers(0, LABELS, (COUNT, 3)), rng.normal(size=(COUNT, point_table.SHOWN))
        )
        for name in ("dual", "tree")
        if not runs
    ]
    texts = [
        f"point of word{rng.integers(9)} number{i} " + "long" * (60 * (i == 1))
        for i in range(COUNT)
    ]
    chosen = np.arange(COUNT)
    tables = [point_table.points_table(chosen, texts, s, relevance, views) for s in scores]
    points = (
        [{**p[0], "top": [q["top"] for q in p]} for p in zip(*tables, strict=True)]
        if runs
        else tables[0]
    )
    ids = np.argsort(-scores[0].toarray(), axis=1)
    deciles = [
        {
            **({"run": r} if runs else {}),
            **measured.by_decile(ids, relevance, np.arange(LABELS), (1, 5)),
        }
        for r in runs or (None,)
    ]
    rows = [
        {"name": r, "values": [42.0], "differences": [[-1.5, -2.0, -1.0, True]] if i else None}
        for i, r in enumerate(runs)
    ]
    return html.ReportData(
        title="made / report",
        facts={"data set": "made", **({} if runs else {"members": "dual, tree"})},
        metrics={} if runs else {"P@1": 42.0, "P@5": 21.0},
        peers={} if runs else {"other": {"P@1": 40.0}},
        comparison={"columns": ["P@1"], "rows": rows} if runs else None,
        runs=list(runs),
        deciles=deciles,
        curves=[
            {"stage": s, "kind": "val", "name": "P@1", "points": [[1, 1.0], [2, 3.0]]}
            for s in ("a", "")
        ],
        reliability=reliability(rng.random(50), rng.random(50) < 0.5),
        confusions=[("one label", "another", 3)],
        clusters=[{"name": "tree 1", **measured.cluster_histogram(np.arange(9))}],
        examples=measured.cluster_examples(
            {"tree 1": sp.csr_matrix(np.eye(2))}, np.array([1, 2]), ["a", "b"]
        ),
        points=points,
        num_points=COUNT,
        labels={i: f"label{i}" for i in range(LABELS)},
    )


@pytest.fixture
def page(driver, tmp_path):
    """page(runs) opens a page and checks that nothing went wrong in it and nothing was fetched."""
    opened = []

    def open_page(runs=()):
        path = tmp_path / "page.html"
        html.write_report(path, made_data(runs))
        driver.get("about:blank")
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # of pages before this one
        driver.get(path.as_uri())
        opened.append(path.as_uri())
        return driver

    yield open_page
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent" and m["params"]["documentURL"] in opened
    ]  # not what a new browser opens by itself
    assert [url for url in asked if not url.startswith("data:")] == opened


def column(driver, number):
    """Texts of a column of the points on the page."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#points > table > tbody > tr')].map(row => "
        "row.children[arguments[0]].innerText)",
        number,
    )


def wait_for(driver, text):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda d: text in d.find_element("id", "page").text)


def test_search_narrows_the_table_to_texts_and_labels(page):
    driver = page()
    wait_for(driver, f"page 1 of 3, {COUNT} points")
    points = made_data().points
    box = driver.find_element("id", "search")
    box.send_keys("NUMBER17")
    wait_for(driver, "page 1 of 1, 1 points")
    assert column(driver, 0) == ["17"] and "number17" in column(driver, 1)[0]
    box.clear()
    box.send_keys("label29 word3")
    ids = [
        p["id"]
        for p in points
        if "word3" in p["text"] and 29 in (*p["true"], *(t[0] for t in p["top"]))
    ]
    wait_for(driver, f"page 1 of 1, {len(ids)} points")
    assert list(map(int, column(driver, 0))) == ids and ids


def test_every_column_sorts_both_ways(page):
    driver = page()
    points = made_data().points
    keys = [
        lambda p: p["id"],
        lambda p: p["text"],
        lambda p: len(p["true"]),
        lambda p: p["top"][0][1],
        lambda p: sum(t[2] for t in p["top"]),
    ]
    heads = driver.find_elements("css selector", "#points > table > thead th")
    assert len(heads) == len(keys)
    for number, (head, key) in enumerate(zip(heads, keys, strict=True)):
        seen = set()
        for _ in range(2):
            head.find_element("css selector", "button").click()
            order = head.get_attribute("aria-sort")
            sign = -1 if order == "descending" else 1
            ranked = sorted(points, key=lambda p: p["id"])
            ranked.sort(key=key, reverse=sign < 0)
            assert list(map(int, column(driver, 0))) == [p["id"] for p in ranked[:50]], (
                number,
                order,
            )
            assert driver.find_element("id", "order").get_attribute("value") == str(number)
            assert driver.find_element("id", "direction").text == order
            seen.add(order)
        assert seen == {"ascending", "descending"}
    others = [head.get_attribute("aria-sort") for head in heads[:-1]]
    assert others == ["none"] * 4


def test_pages_turn_and_keep_the_keyboard_in_place(page):
    driver = page()
    before, after = (driver.find_element("id", name) for name in ("previous", "next"))
    assert not before.is_enabled() and after.is_enabled()
    after.send_keys("\n")
    wait_for(driver, "page 2 of 3")
    assert (
        column(driver, 0)[0] == "50"
        and driver.switch_to.active_element.get_attribute("id") == "points-head"
    )
    after.click()
    wait_for(driver, "page 3 of 3")
    assert len(column(driver, 0)) == 20 and not after.is_enabled()
    before.click()
    wait_for(driver, "page 2 of 3")


def test_members_open_with_their_labels_marked(page):
    driver = page()
    point = made_data().points[0]
    summary = driver.find_element("xpath", "//summary[. = 'what each member says']")
    summary.click()
    box = summary.find_element("xpath", "..")
    # after `toggle`
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 0))")
    rows = box.find_elements("xpath", ".//tbody/tr")
    assert [row.find_element("css selector", "th").text for row in rows] == ["dual", "tree"]
    for row, (own, shares) in zip(rows, point["views"], strict=True):
        tags = row.find_elements("css selector", ".tag")
        assert [(tag.text, "right" in tag.get_attribute("class")) for tag in tags] == [
            (f"{'✓' if hit else '✗'} label{label}", bool(hit)) for label, hit in own
        ]
        assert [float(cell.text) for cell in row.find_elements("css selector", "td.num")] == shares
    summary.click()
    summary.click()  # is not drawn twice
    assert len(box.find_elements("xpath", ".//tbody/tr")) == 2


def test_compared_runs_stand_side_by_side(page):
    driver = page(("one", "two", "three"))
    heads = [
        head.text for head in driver.find_elements("css selector", "#points > table > thead th")
    ]
    assert heads == ["number", "text", "true labels", "one", "two", "three", "right"]
    metrics = driver.find_element("id", "metrics").text
    assert "two − one" in metrics and "−1.50" in metrics and "−2.00 to −1.00" in metrics
    assert [item.text for item in driver.find_elements("css selector", ".legend li")] == [
        "one",
        "two",
        "three",
    ]
    points = made_data(("one", "two", "three")).points
    point = points[0]
    for number, top in enumerate(point["top"], 3):
        assert [line for line in column(driver, number)[0].split("\n") if line] == [
            f"{'✓' if hit else '✗'} label{label} {float(f'{score:.4g}'):g}"
            for label, score, hit in top
        ]
    driver.find_elements("css selector", "#points > table > thead button")[6].click()
    gained = [[sum(t[2] for t in top) for top in p["top"]] for p in points]
    best = max(range(COUNT), key=lambda i: (gained[i][2] - gained[i][0], -i))
    assert column(driver, 0)[0] == str(best)


@pytest.mark.parametrize("runs", [(), ("one", "two", "three")])
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)])
def test_nothing_is_wider_than_the_screen(page, driver, size, runs):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
    )
    try:
        page(runs)
        for box in driver.find_elements("css selector", "details"):
            driver.execute_script("arguments[0].open = true", box)
        wide, screen = driver.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= screen == size[0]
        assert driver.execute_script(
            "return [...document.querySelectorAll('svg')].every(s => s.ariaLabel || "
            "s.getAttribute('aria-label'))"
        )
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
