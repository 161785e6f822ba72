"""What answers in one process: the model of now, the thread of batches, and the counters."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

from engine.service.batching import Batcher, Job, Result
from engine.service.metrics import Metrics
from engine.service.model import ServedModel
from engine.service.settings import Settings
from utils.commands import is_of_input

log = logging.getLogger(__name__)


class Service:
    """A model that answers, until a newer one takes its place.

    Attributes:
        model: of new requests; those that wait keep the one that they came to.
        started: when, in seconds since 1970.
        reload_failed: when the last reload did, if it did.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model = ServedModel.load(settings)
        self.started = time.time()
        self.reload_failed: float | None = None
        self.batcher = Batcher(settings.batch, settings.limits.waiting, self._seen)
        self._reloading = threading.Lock()
        self._asked = threading.Event()
        self._tell()

    def submit(self, job: Job) -> Future[Result]:
        """Have a job answered; as `Batcher.submit`."""
        future = self.batcher.submit(job)
        self.metrics.waiting.set(self.batcher.waiting)
        return future

    def _seen(self, texts: int) -> None:
        self.metrics.waiting.set(self.batcher.waiting)
        self.metrics.batches.observe(texts)
        self.metrics.texts.inc(texts)

    def _tell(self) -> None:
        """Log and count the model of now."""
        self.metrics.loaded.set(self.model.loaded)
        self.metrics.labels.set(len(self.model))
        log.info("%s: ready, %d labels", self.model.predictor.folder, len(self.model))

    def reload(self) -> None:
        """Load the run anew beside the model of now, and put it in its place; in any thread.

        One that cannot be loaded is logged, and the model of now goes on. Whoever asks while a
        reload is at work has it done once more.
        """
        self._asked.set()
        # looked at anew once the lock is free: who could not take it meanwhile has asked before
        while self._asked.is_set() and self._reloading.acquire(blocking=False):
            try:
                self._asked.clear()
                self._reload()
            finally:
                self._reloading.release()

    def _reload(self) -> None:
        log.info("%s: reloading", self.settings.run)
        try:
            self.model = ServedModel.load(self.settings)
        except Exception as error:
            log.error(
                "%s: the newer run cannot be loaded; the model of %s goes on: %s",
                self.settings.run,
                clock(self.model.loaded),
                error,
                exc_info=not is_of_input(error),
            )
            self.reload_failed = time.time()
            self.metrics.reloads.labels("failed").inc()
            return
        self.reload_failed = None
        self.metrics.reloads.labels("loaded").inc()
        self._tell()

    def close(self) -> None:
        """Answer what waits, and take nothing more."""
        self.batcher.close()


def clock(seconds: float | None) -> str | None:
    """Seconds since 1970 as 2026-11-28T21:00:00Z."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
