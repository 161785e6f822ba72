"""Times of a running service: latency at a fixed rate, texts a second, and a soak of good and bad.

    python -m benchmarks.service Results/XMCKit/LF-DebianTitles-small/dexml
    python -m benchmarks.service RUN --rate 100 --seconds 20 --repeat 3
    python -m benchmarks.service RUN --soak 600        # good and bad requests at full load

Starts `serve.py RUN` on a core of its own (`--cores`) and asks it over the loopback from this
process, which keeps to the other cores. Requests of the latency test are sent at fixed times,
whether the ones before were answered or not, and a time counts from when a request was to be sent:
a service that falls behind does not look better by being asked less. Of several repeats the best is
told beside the worst.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parent.parent
TEXTS = ROOT / "Datasets" / "LF-DebianTitles-small" / "raw" / "tst_X.txt"
CONNECTIONS = 8  # open ones, over which requests are sent
READY = 120  # seconds until a service must answer
MOST_REQUESTS = 100_000  # of a latency test
BATCH = 32
CLIENTS = 8  # of the soak, each with one request in flight
SAMPLES = 5.0  # seconds between two looks at the memory
JSON = {"Content-Type": "application/json"}


# -------------------------------- the service


@dataclass
class Served:
    """A running service."""

    port: int
    process: psutil.Process

    def connect(self) -> http.client.HTTPConnection:
        """A connection whose packets are sent at once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def memory(self) -> float:
        """Megabytes that the service and its processes hold."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_info().rss for process in every) / 1e6


@contextlib.contextmanager
def serving(run: str, cores: Sequence[int], words: Sequence[str]) -> Iterator[Served]:
    """Start `serve.py` on some cores; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "serve.py", run, "--port", str(port), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    try:
        served = Served(port, psutil.Process(process.pid))
        _wait(served, process)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait(served: Served, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = served.connect()
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("error: the service did not start")


def ask(
    connection: http.client.HTTPConnection,
    body: bytes,
    path: str = "/predict",
    method: str = "POST",
) -> int:
    """Send a request and read its answer: the status."""
    connection.request(method, path, body, JSON)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def limits_of(served: Served) -> dict[str, int]:
    """The largest k, and the number of labels."""
    connection = served.connect()
    connection.request("GET", "/health")
    health = json.loads(connection.getresponse().read())
    connection.close()
    return {"k": health["limits"]["k"], "labels": health["model"]["labels"]}


def predict_body(texts: Sequence[str], **more: Any) -> bytes:
    """A body for `POST /predict`."""
    return json.dumps({"texts": list(texts), "k": 5, **more}).encode()


# -------------------------------- latency at a fixed rate


def latencies(
    served: Served,
    bodies: Sequence[bytes],
    rate: float,
    seconds: float,
) -> np.ndarray:
    """Milliseconds from when each request was to be sent to the end of its answer [n]."""
    count = min(int(rate * seconds), MOST_REQUESTS)
    times = np.full(count, np.nan)
    statuses: Counter[int] = Counter()
    start = time.perf_counter() + 0.1

    def work(first: int) -> None:
        """Send every CONNECTIONS-th request."""
        connection = served.connect()
        for number in range(first, count, CONNECTIONS):
            at = start + number / rate
            time.sleep(max(0.0, at - time.perf_counter()))
            statuses[ask(connection, bodies[number % len(bodies)])] += 1
            times[number] = time.perf_counter() - at
        connection.close()

    _in_threads(work, CONNECTIONS)
    assert set(statuses) == {200}, statuses
    return 1000 * times


def measure_latency(served: Served, texts: Sequence[str], options: argparse.Namespace) -> None:
    """Print the best and the worst of some repeats."""
    bodies = [predict_body([text]) for text in texts]
    latencies(served, bodies, 50, 2)  # warm
    rows = []
    for _ in range(options.repeat):
        found = latencies(served, bodies, options.rate, options.seconds)
        rows.append(np.percentile(found, (50, 90, 99, 100)))
    rows.sort(key=lambda row: row[0])
    print(f"one text a request, {options.rate:g} requests/s for {options.seconds:g} s, ms:")
    for name, row in (("best", rows[0]), ("worst", rows[-1])):
        p50, p90, p99, most = row
        print(f"  {name:5}  p50 {p50:.2f}  p90 {p90:.2f}  p99 {p99:.2f}  max {most:.1f}")


# -------------------------------- texts a second


def measure_throughput(served: Served, texts: Sequence[str], options: argparse.Namespace) -> None:
    """Print texts a second where requests of BATCH texts follow each other."""
    bodies = [
        predict_body(texts[start : start + BATCH]) for start in range(0, len(texts) - BATCH, BATCH)
    ]
    for clients in (1, 4):
        rates = [
            _throughput(served, bodies, clients, options.seconds) for _ in range(options.repeat)
        ]
        print(
            f"{BATCH} texts a request, {clients} at once: {max(rates):.0f} texts/s "
            f"(worst of {options.repeat}: {min(rates):.0f})"
        )


def _throughput(
    served: Served,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
) -> float:
    ends = time.perf_counter() + seconds
    answered = [0] * clients

    def work(number: int) -> None:
        connection = served.connect()
        place = number
        while time.perf_counter() < ends:
            assert ask(connection, bodies[place % len(bodies)]) == 200
            answered[number] += 1
            place += clients
        connection.close()

    started = time.perf_counter()
    _in_threads(work, clients)
    return BATCH * sum(answered) / (time.perf_counter() - started)


def _in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -------------------------------- a soak


@dataclass
class Soaked:
    """What came of a soak.

    Attributes:
        statuses: by what was expected: good (200), bad (4xx).
        wrong: what was not expected, at most a few of them.
        memory: megabytes, every few seconds.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def good_body(rng: random.Random, texts: Sequence[str], limits: Mapping[str, int]) -> bytes:
    """A request that must be answered.

    Args:
        limits: the largest k, and the number of labels.
    """
    count = rng.choice((1, 1, 1, 2, 5, 32))
    chosen = [rng.choice(texts) for _ in range(count)]
    if rng.random() < 0.1:
        chosen[0] = rng.choice(("", " ", "é" * 500, "\u2028\x00🚀", "word " * 3000))
    more: dict[str, Any] = {}
    if rng.random() < 0.1:
        more["excluded"] = [rng.randrange(limits["labels"]) for _ in range(20)]
    if rng.random() < 0.1:
        more["allowed"] = [rng.randrange(limits["labels"]) for _ in range(50)]
    if rng.random() < 0.05:
        more["explain"] = True
    return predict_body(chosen, **{**more, "k": rng.randint(1, limits["k"])})


def bad_body(rng: random.Random) -> bytes:
    """A request that must be refused."""
    kinds = (
        b"{",
        b"[]",
        b'{"texts": 3}',
        b'{"texts": []}',
        b'{"texts": ["a"], "k": 0}',
        b'{"texts": ["a"], "k": 1e9}',
        b'{"texts": ["a"], "threshold": 7}',
        b'{"texts": ["a"], "allowed": [99999999]}',
        b'{"texts": ["a"], "excluded": ["no such label"]}',
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["' + b"x" * 30_000 + b'"]}',
        b"[" * 5000,
        rng.randbytes(200),
    )
    return rng.choice(kinds)


def soak(served: Served, texts: Sequence[str], seconds: float, reload: float = 0) -> Soaked:
    """Ask good and bad at full load; some clients hang up before they are answered.

    Args:
        reload: seconds between two SIGHUPs, at which the run is loaded anew; 0 = none.
    """
    found = Soaked()
    limits = limits_of(served)
    ends = time.monotonic() + seconds

    def work(number: int) -> None:
        rng = random.Random(number)
        connection = served.connect()
        while time.monotonic() < ends:
            kind = rng.choices(("good", "bad", "path", "gone"), (70, 24, 5, 1))[0]
            if kind == "gone":
                connection.request("POST", "/predict", good_body(rng, texts, limits), JSON)
                connection.close()
                connection = served.connect()
                continue
            try:
                status = _asked(connection, kind, good_body(rng, texts, limits), rng)
            except (OSError, http.client.HTTPException) as error:
                found.wrong.append(f"{kind}: {error!r}")
                connection.close()
                connection = served.connect()
                continue
            found.statuses[kind, status] += 1
            if (status == 200) != (kind == "good") or status >= 500:
                found.wrong.append(f"{kind}: {status}")
        connection.close()

    def look(_: int) -> None:
        following = time.monotonic() + (reload or float("inf"))
        while time.monotonic() < ends:
            found.memory.append(served.memory())
            time.sleep(min(SAMPLES, max(0.0, ends - time.monotonic())))
            if time.monotonic() > following:
                served.process.send_signal(signal.SIGHUP)
                following += reload

    _in_threads(lambda number: (work if number else look)(number), CLIENTS + 1)
    return found


def _asked(
    connection: http.client.HTTPConnection,
    kind: str,
    good: bytes,
    rng: random.Random,
) -> int:
    if kind == "path":
        path, method = rng.choice(
            (("/nothing", "GET"), ("/predict", "PUT"), ("/labels?limit=x", "GET"))
        )
        return ask(connection, b"", path, method)
    return ask(connection, good if kind == "good" else bad_body(rng))


def tell_soak(found: Soaked, seconds: float) -> None:
    """Print what came, and whether the memory stayed flat."""
    total = sum(found.statuses.values())
    print(f"soak of {seconds:g} s, {CLIENTS} clients: {total:,} requests, {total / seconds:.0f}/s")
    for (kind, status), count in sorted(found.statuses.items()):
        print(f"  {kind:5} {status}  {count:,}")
    print(f"  not as expected: {len(found.wrong)} {found.wrong[:5]}")
    memory = found.memory
    third = max(1, len(memory) // 3)
    print(
        f"  memory, MB: start {memory[0]:.0f}, mean of the second third "
        f"{np.mean(memory[third : 2 * third]):.0f}, of the last {np.mean(memory[-third:]):.0f}, "
        f"most {max(memory):.0f}"
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="file, one text a line")
    parser.add_argument(
        "--tests",
        nargs="+",
        choices=("latency", "throughput"),
        default=("latency", "throughput"),
        help="which are run (default both)",
    )
    parser.add_argument("--rate", type=float, default=100, help="requests a second (default 100)")
    parser.add_argument("--seconds", type=float, default=10, help="of each test (default 10)")
    parser.add_argument("--repeat", type=int, default=3, help="times each test (default 3)")
    parser.add_argument("--soak", type=float, default=0, help="seconds of a soak, instead of tests")
    parser.add_argument(
        "--reload",
        type=float,
        default=0,
        help="seconds between two SIGHUPs of a soak (default none)",
    )
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[0], help="that the service may use (default 0)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tests."""
    options = parse_arguments(arguments)
    texts = options.texts.read_text(encoding="utf-8").splitlines()[:4000]
    others = os.sched_getaffinity(0) - set(options.cores)
    if others:
        os.sched_setaffinity(0, others)
    with serving(options.run, options.cores, ["--workers", str(options.workers)]) as served:
        if options.soak:
            tell_soak(soak(served, texts, options.soak, options.reload), options.soak)
            return
        if "latency" in options.tests:
            measure_latency(served, texts, options)
        if "throughput" in options.tests:
            measure_throughput(served, texts, options)
        print(f"memory: {served.memory():.0f} MB")


if __name__ == "__main__":
    main()
