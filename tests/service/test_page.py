"""The page of serve.py in a real headless Chromium: type, and see labels as one types.

python -m pytest -m browser tests/service
"""

import json
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from engine.service.app import create_app
from engine.service.server import bind
from engine.service.service import Service
from engine.service.settings import Settings
from tests import browsers

pytestmark = browsers.NEEDED
SECONDS = 10


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browsers.started(tmp_path_factory.mktemp("browser")) as found:
        yield found


@contextmanager
def serving(service):
    """The address of a service that a thread of this process runs."""
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(create_app(service), log_config=None, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    port = listening.getsockname()[1]
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(fusion_run):
    made = Service(Settings(str(fusion_run)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(service):
    with serving(service) as found:
        yield found


@pytest.fixture
def page(driver, address):
    """The page, opened anew; afterwards nothing went wrong in it and nothing else was fetched."""
    opened(driver, address)
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    assert all(url.startswith((address, "data:")) for url in fetched(driver))


def opened(driver, address):
    driver.get("about:blank")
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # of pages before this one
    driver.get(address)
    wait(driver, lambda: driver.find_element("id", "model").text)


def fetched(driver):
    """Addresses that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] != "about:blank"
    ]


def wait(driver, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(
        driver, SECONDS, 0.02, ignored_exceptions=[StaleElementReferenceException]
    )
    return waiting.until(lambda _: condition())


def texts(driver, selector):
    return [found.text for found in driver.find_elements("css selector", selector)]


def named(service, text, k=5):
    return [label["text"] for label in service.model.answer([text], k)[0]]


def type_text(driver, text):
    replace_text(driver.find_element("id", "text"), text)


def replace_text(box, text):
    """As a person does: `clear` would tell the page nothing."""
    from selenium.webdriver.common.keys import Keys

    box.send_keys(Keys.CONTROL + "a" + Keys.NULL, Keys.BACKSPACE, *text)


def test_labels_stand_there_as_one_types_and_the_last_text_wins(page, service):
    assert "fusion on tiny, 20 labels" in page.find_element("id", "model").text
    for text in ("photo", "the vim tool", ""):
        type_text(page, text)
        expected = named(service, text) if text else []
        wait(page, lambda expected=expected: texts(page, "#answer .name") == expected)
    asked = sum(url.endswith("/predict") for url in fetched(page))
    assert 2 <= asked <= 6, "keys that follow each other are asked for once"


def test_a_stale_answer_is_dropped(page, service):
    page.execute_script(
        "const real = window.fetch; let count = 0;"
        "const later = r => new Promise(go => setTimeout(() => go(r), 700));"
        "window.fetch = (path, options) => {"
        "  const is_first = String(path) === 'predict' && !count++;"
        "  const found = real(path, {...options, signal: undefined});"
        "  return is_first ? found.then(later) : found; };"
    )
    type_text(page, "photo")
    time.sleep(0.4)  # it is asked for, and answered late
    page.find_element("id", "text").send_keys(" and the vim tool")
    expected = named(service, "photo and the vim tool")
    assert expected != named(service, "photo")
    wait(page, lambda: texts(page, "#answer .name") == expected)
    time.sleep(0.8)
    assert texts(page, "#answer .name") == expected


def test_members_of_a_fusion_say_what_they_think(page, service):
    type_text(page, "the vim tool")
    wait(page, lambda: texts(page, "#adds tbody th") == named(service, "the vim tool"))
    answers = service.model.answer(["the vim tool"], 5)
    said = service.model.explain(["the vim tool"], answers)[0]
    assert texts(page, "#adds thead th") == ["label", "dual", "tree"]
    assert texts(page, "#own strong") == ["dual", "tree"]
    own = [label["text"] for member in said for label in member["labels"]]
    assert texts(page, "#own .tag") == own
    shared = [name for name in own if name in named(service, "the vim tool")]
    assert texts(page, "#own .tag.shared") == shared
    shown = [cell.replace("−", "-") for cell in texts(page, "#adds td")]
    adds = [member["adds"][place] for place in range(5) for member in said]
    assert [float(cell) for cell in shown] == pytest.approx(adds, abs=0.006)


def test_how_many_labels_and_the_search_for_labels(page, service):
    box = page.find_element("id", "k")
    assert (box.get_attribute("value"), box.get_attribute("max")) == ("5", "20")
    type_text(page, "photo")
    wait(page, lambda: len(texts(page, "#answer .name")) == 5)
    replace_text(box, "7")
    wait(page, lambda: texts(page, "#answer .name") == named(service, "photo", 7))
    page.find_element("id", "query").send_keys("mail")
    wait(page, lambda: page.find_element("id", "found").text == "1 label")
    assert texts(page, "#labels li")[0].startswith("mail")


def test_texts_and_labels_are_never_markup(page, service, monkeypatch):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    answer = [{"label": 0, "text": evil, "score": 1.0, "probability": 0.25}]
    monkeypatch.setattr(type(service.model), "answer", lambda *_: [answer])
    said = [{"name": evil, "labels": [{"label": 0, "text": evil}], "adds": [1.5]}]
    monkeypatch.setattr(type(service.model), "explain", lambda *_: [said])
    type_text(page, evil)
    wait(page, lambda: texts(page, "#answer .name") == [evil])
    assert texts(page, "#own .tag") == [evil] and texts(page, "#adds thead th")[1] == evil
    assert texts(page, "#answer .number")[0].startswith("25 %")
    width = page.execute_script("return document.querySelector('.track div').style.width")
    assert width == "25%"
    assert page.find_elements("css selector", "main img, main script") == []
    assert page.title == "Labels for a text"


def test_an_error_is_shown(driver, address, service, monkeypatch):
    opened(driver, address)
    monkeypatch.setattr(service, "submit", lambda job: 1 / 0)
    type_text(driver, "photo")
    status = driver.find_element("id", "status")
    wait(driver, lambda: "its log says why" in status.text)
    assert "bad" in status.get_attribute("class") and texts(driver, "#answer li") == []


def test_a_token_is_asked_for_and_sent(driver, service, monkeypatch):
    monkeypatch.setattr(service, "settings", Settings("", token="s3cret"))
    with serving(service) as address:
        opened(driver, address)
        assert driver.find_element("id", "key").is_displayed()
        type_text(driver, "photo")
        wait(driver, lambda: "Bearer TOKEN" in driver.find_element("id", "status").text)
        driver.find_element("id", "token").send_keys("s3cret")
        wait(driver, lambda: texts(driver, "#answer .name") == named(service, "photo"))
        stored = driver.execute_script("return localStorage.length + sessionStorage.length")
        assert stored == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(360, 780), (1280, 800)])
def test_nothing_is_wider_than_the_screen(page, service, size, dark):
    with browsers.screen(page, *size, dark=dark):
        type_text(page, "the vim tool " + "x" * 200)
        wait(page, lambda: len(texts(page, "#answer .name")) == 5)
        wide, screen = page.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= screen == size[0]
        color = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert color == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
