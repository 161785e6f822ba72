"""The pages in a real headless Chromium: no errors, no requests, and search, sorting, pages and
members work.

python -m pytest -m browser      # skipped where no Chromium with its chromedriver is installed
"""

import csv

import pytest

from tests import browsers
from tests.browsers import drawn, screen
from tests.report.made_report import COUNT, EVIL, QUOTED, label_name, made_report
from utils.report.html import write_report

pytestmark = browsers.NEEDED


def column(driver, number):
    """Texts of a column of the points on the page."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#table > tbody > tr')].map(row => "
        "row.children[arguments[0]].innerText)",
        number,
    )


def wait_for(driver, text):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda d: text in d.find_element("id", "page").text)


def test_search_narrows_the_table_to_texts_and_labels(page):
    driver = page()
    wait_for(driver, f"page 1 of 3, {COUNT} points")
    points = made_report().points
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
    points = made_report().points
    keys = [
        lambda p: p["id"],
        lambda p: p["text"],
        lambda p: len(p["true"]),
        lambda p: p["top"][0][1],
        lambda p: sum(t[2] for t in p["top"]),
    ]
    heads = driver.find_elements("css selector", "#table > thead th")
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
    point = made_report().points[0]
    summary = driver.find_element("xpath", "//summary[. = 'what each member says']")
    summary.click()
    box = summary.find_element("xpath", "..")
    drawn(driver)  # after `toggle`
    rows = box.find_elements("xpath", ".//tbody/tr")
    assert [row.find_element("css selector", "th").text for row in rows] == ["dual", "tree"]
    for row, (own, shares) in zip(rows, point["views"], strict=True):
        tags = row.find_elements("css selector", ".tag")
        assert [(tag.text, "right" in tag.get_attribute("class")) for tag in tags] == [
            (f"{'✓' if hit else '✗'} {label_name(label)}", bool(hit)) for label, hit in own
        ]
        assert [float(cell.text) for cell in row.find_elements("css selector", "td.num")] == shares
    summary.click()
    summary.click()  # is not drawn twice
    assert len(box.find_elements("xpath", ".//tbody/tr")) == 2


def test_compared_runs_stand_side_by_side(page):
    driver = page(("one", "two", "three"))
    heads = [head.text for head in driver.find_elements("css selector", "#table > thead th")]
    assert heads == ["number", "text", "true labels", "one", "two", "three", "right"]
    legend = driver.find_elements("css selector", "#frequency .legend li")
    assert [item.text for item in legend] == ["one", "two", "three"]
    points = made_report(("one", "two", "three")).points
    point = points[0]
    for number, top in enumerate(point["top"], 3):
        assert [line for line in column(driver, number)[0].split("\n") if line] == [
            f"{'✓' if hit else '✗'} {label_name(label)} {float(f'{score:.4g}'):g}"
            for label, score, hit in top
        ]
    driver.find_elements("css selector", "#table > thead button")[6].click()
    gained = [[sum(t[2] for t in top) for top in p["top"]] for p in points]
    best = max(range(COUNT), key=lambda i: (gained[i][2] - gained[i][0], -i))
    assert column(driver, 0)[0] == str(best)
    press(driver, "lost")
    lost = [i for i in range(COUNT) if gained[i][2] < gained[i][0]]
    wait_for(driver, f"{len(lost)} points")
    assert lost and len(lost) < COUNT


def test_filters_leave_misses_and_rare_labels(page):
    driver = page()
    points = made_report().points
    misses = [p["id"] for p in points if p["true"] and not any(t[2] for t in p["top"])]
    rare = [p["id"] for p in points if any(label <= 3 for label in p["true"])]
    assert 0 < len(set(misses) & set(rare)) < len(misses) < COUNT
    press(driver, f"only misses ({len(misses)})")
    assert list(map(int, column(driver, 0))) == misses[:50]
    press(driver, f"rare labels ({len(rare)})")
    both = [i for i in misses if i in rare]
    assert list(map(int, column(driver, 0))) == both[:50]
    press(driver, f"only misses ({len(misses)})")  # a second press takes it back
    assert list(map(int, column(driver, 0))) == rare[:50]


def test_the_users_own_ids_of_rows_stand_beside_numbers(page, driver, profile):
    from selenium.webdriver.support.ui import WebDriverWait

    page(own_ids=[f'T-{COUNT - number}, "x"' for number in range(COUNT)])
    heads = driver.find_elements("css selector", "#table > thead th")
    assert [head.text.split()[0] for head in heads][:3] == ["number", "id", "text"]
    driver.find_element("id", "search").send_keys("t-1,")
    wait_for(driver, "page 1 of 1, 1 points")
    assert column(driver, 0) == [str(COUNT - 1)] and column(driver, 1) == ['T-1, "x"']
    path = profile / "downloads" / "predictions.csv"
    path.unlink(missing_ok=True)
    driver.find_element("id", "csv").click()
    WebDriverWait(driver, 10).until(lambda d: path.is_file())
    with open(path, encoding="utf-8", newline="") as file:
        head, line, *_ = csv.reader(file)
    path.unlink()
    assert head[:3] == ["point", "id", "text"] and line[:2] == [str(COUNT - 1), 'T-1, "x"']


def test_points_that_were_found_are_saved_as_csv(page, driver, profile):
    from selenium.webdriver.support.ui import WebDriverWait

    page()
    driver.find_element("id", "search").send_keys('"quoted"')
    wait_for(driver, "page 1 of 1, 1 points")
    driver.find_element("id", "csv").click()
    path = profile / "downloads" / "predictions.csv"
    WebDriverWait(driver, 10).until(lambda d: path.is_file())
    with open(path, encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    point = made_report().points[QUOTED]
    assert head == ["point", "text", "rank", "label", "label_text", "score", "is_true"]
    assert lines[: len(point["top"])] == [
        [
            str(QUOTED),
            point["text"],
            str(rank),
            str(label),
            label_name(label),
            f"{score:g}",
            str(hit),
        ]
        for rank, (label, score, hit) in enumerate(point["top"], 1)
    ]
    missed = set(point["true"]) - {label for label, _, _ in point["top"]}
    assert [line[2:4] for line in lines[5:]] == [["", str(label)] for label in sorted(missed)]
    assert EVIL in point["text"] and "\n" in point["text"] and missed


def test_no_text_of_the_data_becomes_markup(page, driver):
    page()
    assert driver.title == made_report().title
    driver.find_element("id", "label-search").send_keys("label3<")
    press(driver, "rare labels (4)", "labels")
    assert driver.find_elements("css selector", "main img, main b") == []
    for place in ("overview", "confusions", "points", "made"):
        assert EVIL in driver.find_element("id", place).get_attribute("textContent"), place


# -------------------------------- figures


def press(driver, name, section="points"):
    """Press a button of a section whose name begins so."""
    buttons = driver.find_elements("css selector", f"#{section} button")
    next(button for button in buttons if button.text.startswith(name)).click()


def texts(driver, selector):
    found = driver.find_elements("css selector", selector)
    return [item.get_attribute("textContent") for item in found]


def test_the_first_screen_tells_four_figures_and_their_distance(page, driver):
    page()
    report = made_report()
    assert texts(driver, ".tile h3") == ["P@1", "P@5", "R@10", "PSP@5"]  # there is no R@100
    shown = [float(text.removesuffix(" %")) for text in texts(driver, ".tile .figure")]
    assert shown == [round(report.metrics[k], 2) for k in ("P@1", "P@5", "R@10", "PSP@5")]
    distances = texts(driver, ".tile .distance")
    assert distances[0].startswith(f"−{40 - report.metrics['P@1']:.2f} to the best other system")
    assert distances[1].startswith(f"+{report.metrics['P@5'] - 1:.2f} to the best other system")
    assert distances[2] == "not measured of other systems"
    assert distances[3] == "−3.75 to the best other system, other"
    bottom = driver.execute_script(
        "return document.querySelector('.tiles').getBoundingClientRect().bottom"
    )
    assert bottom < 400
    names = texts(driver, ".systems .name")
    assert names == ["other", "member tree", "member dual", "this run", EVIL]  # by P@1
    press(driver, "PSP@5", "overview")
    assert texts(driver, ".systems .name")[:2] == ["other", "this run"]
    assert texts(driver, ".systems .ticks span") == ["0", "20", "40", "60", "80", "100"]


def test_f1_is_among_the_four_where_a_run_has_a_threshold(driver, tmp_path):
    report = made_report()
    found = {"coverage_error": 12.5, "micro_F1": 33.25, "answered": 90.0}
    report.metrics = {**report.metrics, **found}
    write_report(tmp_path / "f1.html", report)
    driver.get((tmp_path / "f1.html").as_uri())
    assert texts(driver, ".tile h3") == ["P@1", "P@5", "R@10", "micro-F1"]
    rows = texts(driver, "#metrics .narrow th[scope=row]")
    assert rows == ["micro-F1", "answered"]
    assert "Coverage error: 12.5 labels." in texts(driver, "#metrics .note")


def test_ticks_are_steps_of_1_2_or_5(page, driver):
    page()
    scales = driver.execute_script(
        "return [[0, 100], [0, 7.3], [-1.2, 0.31], [0, 0.04], [3, 3], [0, 0], [0, 1234567]]"
        ".map(([low, high]) => niceScale(low, high, 5).ticks)"
    )
    assert scales == [
        [0, 20, 40, 60, 80, 100],
        [0, 2, 4, 6, 8],
        [-1.5, -1, -0.5, 0, 0.5],
        [0, 0.01, 0.02, 0.03, 0.04],
        [0, 1, 2, 3],
        [0, 0.2, 0.4, 0.6, 0.8, 1],
        [0, 500000, 1000000, 1500000],
    ]
    assert driver.execute_script("return niceScale(0, 3, 10, true).ticks") == [0, 1, 2, 3]


def test_training_is_one_plot_over_epochs_with_the_best_one_marked(page, driver):
    page()
    assert texts(driver, "#training tbody th") == ["zebra", "apple", "fuser"]  # not by name
    assert texts(driver, "#training figure h3") == ["Stage zebra"]
    shown = texts(driver, "#training svg text")
    assert "best epoch: 3" in shown and "epoch" in shown and "training loss" in shown
    legend = texts(driver, "#training .legend li")
    assert legend == ["loss, single steps", "loss, training", "P@1, validation", "P@5, validation"]
    bands = driver.find_elements("css selector", "#training .band")
    told = [band.get_attribute("data-tip") for band in bands]
    assert told[2].split("\n") == [
        "epoch 3",
        "loss, single steps: 1.25",
        "loss, training: 1",
        "P@1, validation: 42",
        "P@5, validation: 21",
    ]


def test_values_show_where_one_points_and_terms_where_one_tabs(page, driver):
    from selenium.webdriver import ActionChains

    page()
    tip = driver.find_element("id", "tip")
    assert not tip.is_displayed()
    distance = driver.find_element("css selector", ".tile .distance")
    ActionChains(driver).move_to_element(distance).perform()
    assert tip.is_displayed() and tip.text == "other: 40.00"
    term = driver.find_element("css selector", "#overview .term")
    driver.execute_script("arguments[0].focus()", term)
    assert tip.text.startswith("Precision at k")
    driver.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert not tip.is_displayed()


def test_pairs_of_charts_have_one_scale(page, driver):
    page()
    figures = driver.find_elements("css selector", "#frequency figure")
    ticks = {}
    for figure in figures:
        marks = figure.find_elements("css selector", "svg text[text-anchor=end]")
        name = figure.find_element("css selector", "h3").text
        ticks[name] = [mark.get_attribute("textContent") for mark in marks]
    assert ticks["P@1"] == ticks["P@5"] and len(ticks["P@1"]) > 2
    assert ticks["recall@1"] == ticks["recall@5"] == ["0", "20", "40", "60", "80", "100"]


def test_thresholds_and_reliability_tell_what_was_chosen_and_the_error(page, driver):
    page()
    report = made_report()
    assert "chosen: 0.55" in texts(driver, "#thresholds svg text")
    note = driver.find_element("css selector", "#thresholds .note").text
    assert "0.55, was chosen for micro-F1; 4 labels have a threshold of their own" in note
    bins = report.reliability
    pairs = zip(bins["count"], bins["score"], bins["right"], strict=True)
    error = 100 * sum(count * abs(score - right) for count, score, right in pairs) / 500
    assert driver.find_element("id", "ece").text == f"{error:.2f} %"


def test_labels_are_searched_sorted_and_filtered(page, driver):
    from selenium.webdriver.support.ui import WebDriverWait

    page()
    rows = made_report().label_table["rows"]
    heads = texts(driver, "#label-table thead th")
    assert heads[:3] == ["label", "training points", "points"] and heads[-1] == "AP"
    shown = [int(text) for text in texts(driver, "#label-table tbody td:nth-child(3)")]
    assert shown == sorted((row[3] for row in rows), reverse=True)
    status = driver.find_element("id", "label-page")
    press(driver, "never right (5)", "labels")
    assert status.text == "page 1 of 1, 5 labels"
    driver.find_element("id", "label-search").send_keys("label14")
    WebDriverWait(driver, 10).until(lambda d: status.text == "page 1 of 1, 1 labels")
    assert texts(driver, "#label-table tbody tr > *") == [
        "label14",
        "14",
        str(rows[14][3]),
        "0",
        "",
        "0.0",
        "",
        "12.5",
    ]
    press(driver, "precision", "labels")  # labels without a value stand last, both ways
    assert "100 more" not in driver.find_element("id", "labels").text
    assert "labels.csv in the run folder has 70 more" in driver.find_element("id", "labels").text


FIVE = (
    "one",
    "two",
    "a-run-with-a-rather-long-name-of-its-own",
    "four",
    "Results/a/b/c/" + "x" * 50,
)


def test_a_forest_of_five_runs_cuts_nothing_off(page, driver):
    page(FIVE)
    figures = driver.find_elements("css selector", "#comparison figure")
    assert [figure.find_element("css selector", "h3").text for figure in figures] == [
        "P@1",
        "PSP@5",
    ]
    ticks = [
        [tick.text for tick in figure.find_elements("css selector", ".ticks span")]
        for figure in figures
    ]
    assert ticks[0] == ticks[1] == ["−8", "−6", "−4", "−2", "0", "+2"]
    for figure in figures:
        names = figure.find_elements("css selector", ".name")
        assert [name.text for name in names] == list(FIVE[1:])
    rows = figures[0].find_elements("css selector", "li")
    assert rows[0].get_attribute("data-tip") == "two: −1.50 (−2.00 to −1.00), clear"
    assert "worse" in rows[0].get_attribute("class")
    unclear = figures[1].find_elements("css selector", "li")[0]
    assert "unclear" in unclear.get_attribute("class")
    places = driver.execute_script(
        "return [...document.querySelectorAll('#comparison .track')].map(track => ["
        "track.getBoundingClientRect(), ...[...track.querySelectorAll('.interval, .dot, .zero')]"
        ".map(part => part.getBoundingClientRect())].map(box => [box.left, box.right]))"
    )
    assert len(places) == 10  # with the axes
    for (left, right), *parts in places:
        assert all(left - 6 <= start and end <= right + 6 for start, end in parts)


def test_contents_lead_to_every_section(page, driver):
    page()
    links = driver.find_elements("css selector", "#contents a")
    sections = driver.find_elements("css selector", "main > section")
    assert [link.get_attribute("href").partition("#")[2] for link in links] == [
        section.get_attribute("id") for section in sections
    ]
    assert len(links) > 12 and all(link.text for link in links)


def test_every_term_that_is_used_is_explained(page, driver):
    page()
    unexplained = driver.execute_script(
        "return [...document.querySelectorAll('.term')].filter(t => !t.dataset.tip).length"
    )
    assert unexplained == 0
    listed = texts(driver, "#terms dt")
    for name in ("P@k", "PSP@k", "propensity", "filter pairs", "head, torso, tail", "ECE"):
        assert name in listed
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("runs", [(), FIVE])
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)])
def test_nothing_is_wider_than_the_screen(page, driver, size, runs):
    with screen(driver, *size):
        page(runs)
        for box in driver.find_elements("css selector", "details"):
            driver.execute_script("arguments[0].open = true", box)
        drawn(driver)
        wide, inner = driver.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= inner == size[0]
        assert driver.execute_script(
            "return [...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))"
        )


def test_on_a_phone_tables_say_that_they_scroll_and_their_first_column_stays(page, driver):
    with screen(driver, 390, 844):
        page()
        wide, hint, before, after = driver.execute_script(
            """
            const box = document.querySelector("#labels .scroll");
            const cell = box.querySelector("tbody th");
            const before = cell.getBoundingClientRect().left;
            box.scrollLeft = 150;
            const scrolled = box.scrollLeft;
            const hint = box.parentNode.querySelector(".hint");
            return [scrolled, !hint.hidden, before, cell.getBoundingClientRect().left];
            """
        )
        assert wide == 150 and hint and before == after
        for fitting in ("#metrics", "#points"):  # what fits says nothing; points are cards
            hint = driver.find_element("css selector", f"{fitting} .hint")
            assert not hint.is_displayed()
        assert not driver.find_element("css selector", "#contents a").is_displayed()
