"""The HTTP interface: answers, batches, limits, the token, reloads, and bad input of all kinds."""

import asyncio
import json
import random
import shutil
import threading
from concurrent.futures import Future

import pytest
from fastapi.testclient import TestClient

from benchmarks import service as service_benchmark
from engine.chosen_labels import ChosenLabels
from engine.predictor import Predictor
from engine.service.app import create_app
from engine.service.batching import Batcher, Job
from engine.service.door import Door
from engine.service.label_search import LabelSearch
from engine.service.metrics import Metrics
from engine.service.problems import Problem, shown
from engine.service.service import Service
from engine.service.settings import Limits, Settings

TEXTS = ["the vim and linux tool", "", "photo", "naïve \u2028 кот 🚀 " * 50, "snake"]
LIMITS = Limits(texts=8, characters=2000, k=15, body=20_000, chosen=10, waiting=64, seconds=20)


@pytest.fixture(scope="module")
def service(fusion_run):
    made = Service(Settings(str(fusion_run), limits=LIMITS))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def predictor(fusion_run):
    return Predictor(fusion_run)


def post(client, **body):
    return client.post("/predict", json=body)


def plain(answers):
    """Answers without what only a service adds."""
    return [
        [(label["label"], label["text"], pytest.approx(label["score"], abs=2e-6)) for label in a]
        for a in answers
    ]


# -------------------------------- answers


def test_answers_are_those_of_the_predictor(client, predictor):
    found = post(client, texts=TEXTS, k=7)
    assert found.status_code == 200 and found.headers["cache-control"] == "no-store"
    assert plain(found.json()["answers"]) == plain(predictor(TEXTS, k=7))
    assert set(found.json()["answers"][0][0]) >= {"label", "text", "score", "probability"}
    assert found.json()["score_is"] == predictor.ranker.score_is
    assert [len(answer) for answer in post(client, texts=TEXTS).json()["answers"]] == [5] * 5


def test_labels_are_allowed_and_excluded_by_id_and_by_text(client, predictor):
    names = predictor.label_texts
    found = post(client, texts=["vim"], allowed=[3, names[9], 4], excluded=[names[4]], k=15)
    expected = predictor(["vim"], k=15, chosen=ChosenLabels(allowed=[3, 9]))
    assert plain(found.json()["answers"]) == plain(expected)
    assert {label["label"] for label in found.json()["answers"][0]} <= {3, 9}
    assert post(client, texts=["vim"], allowed=[]).json()["answers"] == [[]]


def test_members_of_a_fusion_explain_themselves(client):
    body = post(client, texts=TEXTS[:2], k=3, explain=True).json()
    for answer, members in zip(body["answers"], body["members"], strict=True):
        assert [member["name"] for member in members] == ["dual", "tree"]
        assert all(len(member["adds"]) == len(answer) == 3 for member in members)
        assert all(0 < len(member["labels"]) <= 5 for member in members)
    assert post(client, texts=["vim"], allowed=[], explain=True).json()["answers"] == [[]]


def test_one_label_and_more_labels_than_there_are(client, predictor):
    assert len(post(client, texts=["vim"], k=1).json()["answers"][0]) == 1
    service = Service(Settings(str(predictor.folder), limits=Limits(k=1000)))
    many = TestClient(create_app(service))
    answer = many.post("/predict", json={"texts": ["vim"], "k": 500}).json()["answers"][0]
    assert plain([answer]) == plain([predictor("vim", k=20)])
    assert many.get("/health").json()["limits"]["k"] == 20
    service.close()


def test_a_threshold_keeps_what_is_probable(service, client):
    job = Job(service.model, ["vim"], 5, 0.5)
    assert post(client, texts=["vim"], threshold=None).status_code == 200
    if service.model.calibrated:
        whole = post(client, texts=TEXTS, k=10).json()["answers"]
        least = sorted(label["probability"] for label in whole[0])[5]
        kept = post(client, texts=TEXTS, k=10, threshold=least).json()["answers"]
        assert kept == [[p for p in answer if p["probability"] >= least] for answer in whole]
        assert post(client, texts=TEXTS, threshold="auto").status_code == 200
    else:
        refused = post(client, texts=["vim"], threshold=0.5)
        assert refused.status_code == 422 and "not calibrated" in refused.json()["detail"]
    assert job.threshold == 0.5


# -------------------------------- labels, health, metrics, pages


def test_labels_are_searched_page_by_page(client, predictor):
    names = list(predictor.label_texts)
    page = client.get("/labels").json()
    assert page["total"] == 20 and page["next"] is None
    assert [label["text"] for label in page["labels"]] == names
    wanted = [label for label, text in enumerate(names) if "e" in text]
    assert len(wanted) > 4
    first = client.get("/labels", params={"q": "E", "limit": 3}).json()
    assert (first["total"], first["next"]) == (len(wanted), 3)
    rest = client.get("/labels", params={"q": " e ", "offset": 3, "limit": 100}).json()
    found = [label["label"] for label in first["labels"] + rest["labels"]]
    assert found == wanted and rest["next"] is None
    assert client.get("/labels", params={"q": "nothing like it"}).json()["total"] == 0
    assert client.get("/labels", params={"offset": 10**9}).json()["labels"] == []


def test_label_search_finds_all_words_in_any_case_and_names_twice():
    search = LabelSearch(["Red Apple", "apple\npie", "", "Red Apple", "ÄPFEL straße", "a\u2028b"])
    assert search.find("apple RED", 0, 9) == (2, [0, 3])
    assert search.find("apple", 1, 1) == (3, [1])
    assert search.find("äpfel STRASSE", 0, 9) == (1, [4])
    assert search.find("", 4, 9) == (6, [4, 5])
    assert search.named("Red Apple") == [0, 3] and search.named("red apple") == []
    assert LabelSearch([]).find("x", 0, 5) == (0, [])


def test_health_metrics_and_the_description(client):
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["reload_failed"] is None
    model = health["model"]
    assert (model["method"], model["labels"]) == ("fusion", 20)
    assert model["members"] == ["dual", "tree"]
    post(client, texts=["vim"])
    post(client, texts=[])
    lines = client.get("/metrics").text.splitlines()
    assert any(
        line.startswith('xmckit_requests_total{path="/predict",status="422"}') for line in lines
    )
    assert any(line.startswith("xmckit_batch_texts_count") for line in lines)
    assert "xmckit_model_labels 20.0" in lines
    paths = client.get("/openapi.json").json()["paths"]
    assert sorted(paths) == ["/health", "/labels", "/metrics", "/predict"]
    body = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert sorted(body["properties"]) == [
        "allowed", "excluded", "explain", "k", "texts", "threshold",
    ]  # fmt: skip
    assert "cdn.jsdelivr.net" in client.get("/docs").text
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text


# -------------------------------- bad input


BAD = [
    (b"", 400, "the body: expected JSON, got ''"),
    (b"{", 400, "the body: expected JSON, got '{'"),
    (b"\xff\xfe", 400, "the body: expected JSON"),
    (b'{"texts": ["\\ud800"]}', 400, "the body: expected JSON"),
    (b"[" * 10_000, 400, "the body: expected JSON"),
    (b"[1]", 422, "the body: expected a JSON object, got a list of 1"),
    (b"null", 422, "the body: expected a JSON object, got null"),
    (b"{}", 422, "texts: expected a list of texts, got nothing"),
    (b'{"texts": "one"}', 422, "texts: expected a list of texts, got 'one'"),
    (b'{"texts": []}', 422, "texts: expected from 1 to 8 texts, got 0"),
    (b'{"texts": ["a", 7]}', 422, "texts[1]: expected a text, got 7"),
    (b'{"texts": ["a"], "k": 0}', 422, "k: expected a whole number from 1, got 0"),
    (b'{"texts": ["a"], "k": true}', 422, "k: expected a whole number from 1, got true"),
    (b'{"texts": ["a"], "k": 2.5}', 422, "k: expected a whole number from 1, got 2.5"),
    (b'{"texts": ["a"], "k": 16}', 422, "k: expected from 1 to 15, got 16"),
    (b'{"texts": ["a"], "k": 1' + b"0" * 4000 + b"}", 422, "k: expected"),
    (b'{"texts": ["a"], "threshold": 1.5}', 422, "threshold: expected a number from 0 to 1"),
    (b'{"texts": ["a"], "threshold": NaN}', 422, "threshold: expected a number from 0 to 1"),
    (b'{"texts": ["a"], "threshold": "high"}', 422, "threshold: expected a number from 0 to 1"),
    (b'{"texts": ["a"], "tresh": 1}', 422, "tresh: no such field; expected some of texts, k"),
    (b'{"texts": ["a"], "allowed": 3}', 422, "allowed: expected a list of label ids"),
    (b'{"texts": ["a"], "allowed": [0, 1.5]}', 422, "allowed[1]: expected a label id or text"),
    (b'{"texts": ["a"], "allowed": [20]}', 422, "allowed[0]: expected a label id from 0 to 19"),
    (b'{"texts": ["a"], "allowed": [-1]}', 422, "allowed[0]: expected a label id from 0 to 19"),
    (b'{"texts": ["a"], "excluded": ["nobody"]}', 422, "excluded[0]: expected a label id from 0"),
    (b'{"texts": ["a"], "excluded": [1,1,1,1,1,1,1,1,1,1,1]}', 422, "expected at most 10 labels"),
    (b'{"texts": ["' + b"x" * 2001 + b'"]}', 422, "texts[0]: expected at most 2,000 characters"),
    (b'{"texts": ["' + b"x" * 20_000 + b'"]}', 413, "expected a body of at most 20,000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "detail"), BAD)
def test_bad_bodies_are_told_what_was_expected_and_what_came(client, body, status, detail):
    found = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert (found.status_code, list(found.json())) == (status, ["detail"])
    assert detail in found.json()["detail"] and len(found.json()["detail"]) < 400


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/predict", 405, "/predict: expected method POST, got 'GET'"),
        ("GET", "/nothing", 404, "'/nothing': no such path"),
        ("GET", "/labels?limit=0", 422, "limit: "),
        ("GET", "/labels?offset=x", 422, "offset: "),
        ("GET", "/labels?q=" + "x" * 1001, 422, "q: "),
        ("POST", "/predict", 415, "expected the header `Content-Type: application/json`, got ''"),
    ],
)
def test_bad_paths_methods_and_parameters(client, method, path, status, detail):
    found = client.request(method, path)
    assert found.status_code == status and found.json()["detail"].startswith(detail)


def test_no_mutation_of_a_request_is_an_error_of_ours(client):
    rng = random.Random(0)
    good = json.dumps(
        {
            "texts": ["vim ü 🚀", ""],
            "k": 3,
            "threshold": None,
            "allowed": [1, "shell"],
            "explain": True,
        }
    ).encode()
    statuses = set()
    for _ in range(300):
        body = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(body))
            kind = rng.randrange(3)
            if kind == 0:
                body[place] = rng.randrange(256)
            elif kind == 1:
                del body[place : place + rng.randint(1, 9)]
            else:
                body[place:place] = rng.choice([b"\\ud800", b"[", b"1e999", b"null", b'"', b"\0"])
        found = client.post(
            "/predict", content=bytes(body), headers={"Content-Type": "application/json"}
        )
        statuses.add(found.status_code)
        assert found.status_code in (200, 400, 422), (bytes(body), found.text)
    assert statuses == {200, 400, 422}


def test_the_soak_asks_good_and_bad(client):
    rng = random.Random(0)
    limits = {"k": LIMITS.k, "labels": 20}
    kind = {"Content-Type": "application/json"}
    good = [service_benchmark.good_body(rng, ["vim", "bash"], limits) for _ in range(40)]
    few = [body for body in good if len(json.loads(body)["texts"]) <= LIMITS.texts]
    few = [body for body in few if len(body) < LIMITS.characters]
    assert len(few) > 10
    for body in few:
        found = client.post("/predict", content=body, headers=kind)
        too_many = len(json.loads(body).get("allowed", json.loads(body).get("excluded", ())))
        assert found.status_code == (422 if too_many > LIMITS.chosen else 200), found.text
    for _ in range(40):
        found = client.post("/predict", content=service_benchmark.bad_body(rng), headers=kind)
        assert 400 <= found.status_code < 500


def test_a_long_body_is_left_off_while_it_comes(service):
    sent = 0
    said = []

    async def receive():
        nonlocal sent
        sent += 1
        assert sent < 100, "it reads on"
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def send(message):
        said.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "headers": headers,
        "query_string": b"", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(create_app(service)(scope, receive, send))
    assert said[0]["status"] == 413 and sent == 21


def test_a_body_that_does_not_come_is_not_waited_for(fusion_run, service):
    slow = Service.__new__(Service)
    vars(slow).update(vars(service))
    slow.settings = Settings(str(fusion_run), limits=Limits(seconds=0.05))
    said = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        said.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/predict", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "scheme": "http",
    }  # fmt: skip
    asyncio.run(create_app(slow)(scope, receive, send))
    assert said[0]["status"] == 408 and b"0.05 seconds, got 0 bytes" in said[1]["body"]


def test_what_came_is_shown_short():
    assert shown(10**5000) == "a number of more than 64 bits"
    assert len(shown("x" * 1000)) == 60 and shown([1, 2]) == "a list of 2"


# -------------------------------- batches


class Model:
    """A model that notes what it is asked, waits until it may answer, and fails at one text."""

    is_exact = True
    members = ()

    def __init__(self):
        self.asked = []
        self.may = threading.Event()
        self.started = threading.Event()

    def answer(self, texts, k, chosen, auto):
        self.asked.append((list(texts), k))
        self.started.set()
        assert self.may.wait(10)
        if "bad" in texts:
            raise RuntimeError("a text that the model does not stand")
        return [[{"label": place, "text": text} for place in range(k)] for text in texts]


def held(batcher, model):
    """The future of a job that the thread of batches is at."""
    first = batcher.submit(Job(model, ["first"]))
    assert model.started.wait(10)
    return first


def test_requests_that_wait_are_answered_together_each_as_it_asked():
    seen = []
    model = Model()
    batcher = Batcher(size=6, waiting=100, seen=seen.append)
    held(batcher, model)
    jobs = [Job(model, ["a", "b"], 2), Job(model, ["c"], 4), Job(model, ["d", "e"], 1),
            Job(model, ["f", "g"], 3), Job(model, list("1234567"), 1),
            Job(model, ["x"], 3, chosen=ChosenLabels((1, 2)))]  # fmt: skip
    futures = [batcher.submit(job) for job in jobs]
    futures[3].cancel()
    model.may.set()
    for job, future in zip(jobs, futures, strict=True):
        if not future.cancelled():
            answers = future.result(10).answers
            assert [answer[0]["text"] for answer in answers] == list(job.texts)
            assert all(len(answer) == job.k for answer in answers)
    batcher.close()
    assert model.asked == [
        (["first"], 5), (["a", "b", "c", "d", "e"], 4), (list("1234567"), 1), (["x"], 3),
    ]  # fmt: skip
    assert seen == [1, 5, 0, 7, 1] and batcher.waiting == 0


def test_a_bad_request_harms_no_other_of_its_batch():
    model = Model()
    batcher = Batcher(size=64, waiting=100)
    held(batcher, model)
    futures = [batcher.submit(Job(model, [text])) for text in ("a", "bad", "b")]
    model.may.set()
    assert [futures[place].result(10).answers[0][0]["text"] for place in (0, 2)] == ["a", "b"]
    with pytest.raises(RuntimeError, match="does not stand"):
        futures[1].result(10)
    assert batcher.submit(Job(model, ["next"])).result(10).answers[0][0]["text"] == "next"
    batcher.close()


def test_more_than_may_wait_is_refused_and_what_waits_is_answered_at_the_end():
    model = Model()
    batcher = Batcher(size=4, waiting=3)
    first = held(batcher, model)
    waits = batcher.submit(Job(model, ["a", "b", "c"]))
    with pytest.raises(Problem, match="too many texts wait: 3, of 3 at most") as refused:
        batcher.submit(Job(model, ["d"]))
    assert refused.value.status == 503 and refused.value.headers == {"Retry-After": "1"}
    model.may.set()
    batcher.close()
    assert first.done() and len(waits.result(0).answers) == 3


def test_errors_of_the_model_and_slow_answers_are_told(service, client, monkeypatch, caplog):
    def fails(job):
        future = Future()
        future.set_exception(RuntimeError("secret path"))
        return future

    monkeypatch.setattr(service, "submit", fails)
    failed = post(client, texts=["vim"])
    assert failed.status_code == 500 and "secret" not in failed.text
    monkeypatch.setattr(service, "submit", lambda job: Future())
    monkeypatch.setattr(service, "settings", Settings("", limits=Limits(seconds=0.05)))
    late = post(client, texts=["vim"])
    assert late.status_code == 504 and "longer than 0.05 seconds" in late.json()["detail"]


def test_requests_at_once_get_their_own_answers(client, predictor):
    texts = [f"{word} tool" for word in ("vim", "bash", "photo", "socket", "snake", "coffee")]
    found = {}

    def ask(text, k):
        found[text, k] = post(client, texts=[text], k=k).json()["answers"]

    threads = [threading.Thread(target=ask, args=(text, k)) for text in texts for k in (1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for (text, k), answers in found.items():
        assert plain(answers) == plain(predictor([text], k=k))


# -------------------------------- token, reload


def test_a_token_opens_all_but_what_holds_nothing(service, monkeypatch):
    monkeypatch.setattr(service, "settings", Settings("", token="s3cret", limits=LIMITS))
    client = TestClient(create_app(service))
    body = {"texts": ["vim"]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"},
                    {"Authorization": "Bearer s3cret "[:-2]}):  # fmt: skip
        refused = client.post("/predict", json=body, headers=headers)
        assert refused.status_code == 401 and "Bearer TOKEN" in refused.json()["detail"]
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/labels", headers=headers).status_code == 401
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/nothing", headers=headers).status_code == 401
    for path in ("/", "/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/health").json()["token"] is True
    good = {"Authorization": "Bearer s3cret"}
    assert client.post("/predict", json=body, headers=good).status_code == 200
    assert "s3cret" not in repr(Settings("", token="s3cret"))


def test_a_reload_takes_the_newer_run_and_keeps_the_old_one_where_it_is_broken(
    fusion_run, dual_run, tmp_path, caplog
):
    current = tmp_path / "current"
    current.symlink_to(shutil.copytree(dual_run, tmp_path / "old"))
    service = Service(Settings(str(current)))
    client = TestClient(create_app(service))
    before = client.get("/health").json()
    waiting = Job(service.model, ["vim"])  # came to the old model

    broken = shutil.copytree(dual_run, tmp_path / "broken")
    (broken / "model" / "label_embeddings.npy").write_bytes(b"nothing")
    replace(current, broken)
    service.reload()
    after = client.get("/health").json()
    assert after["reload_failed"] and after["loaded"] == before["loaded"]
    assert "the newer run cannot be loaded" in caplog.text
    assert "label_embeddings.npy: not a .npy array" in caplog.text
    assert "Traceback" not in caplog.text  # it is the user's run, no bug
    assert post(client, texts=["vim"]).status_code == 200

    replace(current, fusion_run)
    service.reload()
    newer = client.get("/health").json()
    assert newer["model"]["method"] == "fusion" and newer["reload_failed"] is None
    assert service.submit(waiting).result(10).answers[0]
    text = client.get("/metrics").text
    assert 'xmckit_reloads_total{result="failed"} 1.0' in text
    assert 'xmckit_reloads_total{result="loaded"} 1.0' in text
    service.close()


def test_nothing_is_sent_to_who_is_gone():
    sent = []

    async def app(scope, receive, send):
        if scope["listens"]:
            await receive()
        await send({"type": "http.response.start", "status": 400, "headers": []})

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message["status"])

    door = Door(app, Metrics(), None)
    for listens in (True, False):
        asyncio.run(door({"type": "http", "path": "/", "listens": listens}, receive, send))
    assert sent == [400]


def test_who_asks_as_a_reload_ends_has_it_done_once_more():
    """That is, between its last look and the moment that it gives the lock back."""

    class Lock:
        released = 0

        def acquire(self, blocking):
            return True

        def release(self):
            self.released += 1
            if self.released == 1:
                service._asked.set()  # as another thread does before it finds no lock

    service = Service.__new__(Service)
    service._asked = threading.Event()
    service._reloading = Lock()
    done = []
    service._reload = lambda: done.append(True)
    service.reload()
    assert len(done) == 2


def replace(link, target):
    other = link.with_name("next")
    other.symlink_to(target)
    other.replace(link)
