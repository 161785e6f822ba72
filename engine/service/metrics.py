"""What a service counts, for Prometheus (`GET /metrics`).

Of one process in memory; of several in files of the folder PROMETHEUS_MULTIPROC_DIR, which the
first process names before the others start: whoever is asked tells the sum.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self._of_many = FOLDER in os.environ
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "xmckit_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "xmckit_request_seconds",
            "From a request's first byte to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.texts = Counter("xmckit_texts", "Texts that were answered", registry=registry)
        self.batches = Histogram(
            "xmckit_batch_texts",
            "Texts that were answered together",
            buckets=TEXTS,
            registry=registry,
        )
        self.waiting = Gauge(
            "xmckit_waiting_texts",
            "Texts that wait for an answer",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.reloads = Counter(
            "xmckit_reloads", "Reloads of the run by result", ["result"], registry=registry
        )
        self.loaded = Gauge(
            "xmckit_model_loaded_timestamp_seconds",
            "When the model that answers was loaded; the oldest of all processes",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.labels = Gauge(
            "xmckit_model_labels",
            "Labels of the model that answers",
            registry=registry,
            multiprocess_mode="livemax",
        )
        if not self._of_many:
            ProcessCollector(registry=registry)

    def page(self) -> bytes:
        """What Prometheus reads."""
        registry = self._registry
        if self._of_many:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return bytes(generate_latest(registry))
