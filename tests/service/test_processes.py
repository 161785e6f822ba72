"""serve.py as a command: processes, signals, and what it refuses to start with."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import serve
from engine.service import server
from tests.commands import ROOT, Command
from utils.errors import InputError

SECONDS = 60


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def ask(port, method="GET", path="/health", body=None, headers=None):
    """(status, JSON) of a request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        text = None if body is None else json.dumps(body)
        kind = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, text, kind)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if path != "/metrics" else data.decode()
    finally:
        connection.close()


def ready(port, alive):
    """Wait until a service answers."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and alive():
        try:
            return ask(port)[1]
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the service does not answer")


def test_sigterm_answers_what_is_in_flight(dual_run):
    port = free_port()
    command = Command("serve.py", dual_run, "--port", port, "--run.threads", "1")
    ready(port, lambda: command.returncode is None)
    texts = ["the vim tool " * 1000] * 256
    found = []
    body = {"texts": texts, "k": 20}
    thread = threading.Thread(target=lambda: found.append(ask(port, "POST", "/predict", body)))
    thread.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and "xmckit_texts_total 0.0" in ask(port, path="/metrics")[1]:
        time.sleep(0.005)
    command.send_signal(signal.SIGTERM)
    thread.join()
    finished = command.finish()
    assert found[0][0] == 200 and len(found[0][1]["answers"]) == 256
    assert finished.returncode in (0, -signal.SIGTERM) and "Traceback" not in finished.stderr
    with pytest.raises(OSError):
        ask(port)


def test_several_processes_answer_reload_and_end_together(dual_run):
    port = free_port()
    words = ["serve.py", dual_run, "--port", port, "--workers", 2]
    environment = {**os.environ, "XMCKIT_TOKEN": "secret"}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    reading = threading.Thread(target=lambda: said.extend(process.stderr))
    reading.start()

    def logged(words, times):
        deadline = time.monotonic() + SECONDS
        while sum(words in line for line in said) < times:
            assert time.monotonic() < deadline and process.poll() is None, said
            time.sleep(0.05)

    try:
        logged(": ready, 20 labels", 2)
        logged("Application startup complete", 2)
        key = {"Authorization": "Bearer secret"}
        body = {"texts": ["vim"]}
        assert ask(port, "POST", "/predict", body)[0] == 401
        for _ in range(8):
            assert ask(port, "POST", "/predict", body, key)[0] == 200
        counted = ask(port, path="/metrics", headers=key)[1]
        assert 'xmckit_requests_total{path="/predict",status="200"} 8.0' in counted
        process.send_signal(signal.SIGHUP)
        logged(": ready, 20 labels", 4)
        assert ask(port, "POST", "/predict", body, key)[0] == 200
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    finally:
        process.kill()
        reading.join()
        process.stderr.close()
    assert process.returncode == 0 and not any("Traceback" in line for line in said)
    with pytest.raises(OSError):
        ask(port)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        serve.main([str(word) for word in words])
    return f"{stopped.value} {capsys.readouterr().err}"


def test_what_cannot_be_served_is_one_line(dual_run, tmp_path, capsys, monkeypatch):
    assert "not a run folder" in refused(capsys, tmp_path)
    assert "expected a whole number from 1 to 512" in refused(capsys, dual_run, "--workers", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, dual_run, "--port", port)
        assert f"error: 127.0.0.1:{port}: cannot be listened at" in said
    assert "cannot be listened at" in refused(capsys, dual_run, "--host", "no.such.host.invalid")
    monkeypatch.setenv("XMCKIT_TOKEN", "two\nlines")
    assert "XMCKIT_TOKEN: expected printable ASCII" in refused(capsys, dual_run)
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    said = refused(capsys, dual_run)
    assert said.startswith(
        "error: serve.py needs fastapi, uvicorn, prometheus_client: pip install fastapi uvicorn "
        "prometheus-client (requirements-serve.txt"
    )


def test_addresses():
    assert server.is_loopback("127.0.0.1") and server.is_loopback("::1")
    assert server.is_loopback("localhost")
    assert not server.is_loopback("0.0.0.0") and not server.is_loopback("example.org")
    with pytest.raises(InputError, match=r"\[::2\]:1: cannot be listened at"):
        server.bind("::2", 1)


def test_the_image_runs_as_another_user_and_finds_its_files():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and users[-1] not in ("root", "0")
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                if not source.startswith("--"):
                    assert (ROOT / source).exists(), source
    ignored = Path(ROOT / ".dockerignore").read_text().splitlines()
    assert {"Results", "Datasets", ".git", ".venv"} <= set(ignored)
