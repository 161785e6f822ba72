"""Requests that come together are answered together, by a thread of its own.

    batcher = Batcher(size=64, waiting=4096)
    future = batcher.submit(Job(model, texts, k=5))     # a concurrent.futures.Future
    batcher.close()                                     # answers what waits

A model answers many texts in little more time than one. The thread takes what waits, up to `size`
texts, and never waits for more: under little load a request is answered alone and at once.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from engine.chosen_labels import ALL_LABELS, ChosenLabels
from engine.ranked_labels import AUTO, Answer
from engine.service.model import ServedModel
from engine.service.problems import Problem

log = logging.getLogger(__name__)
SAME_ORDER = 200  # up to here the k best labels are the first k of more (models/trees: POOL)


@dataclass(eq=False)
class Job:
    """What a request asks of a model.

    Attributes:
        future: of the Result.
    """

    model: ServedModel
    texts: Sequence[str]
    k: int = 5
    threshold: float | str | None = None
    chosen: ChosenLabels = ALL_LABELS
    explain: bool = False
    future: Future[Result] = field(default_factory=Future)

    @property
    def kind(self) -> Hashable:
        """Equal for jobs that one call of the model answers."""
        first_k_of_more = self.model.is_exact and self.k <= SAME_ORDER
        k = None if first_k_of_more else self.k
        auto = self.threshold == AUTO
        return id(self.model), k, auto, self.chosen, self.explain


@dataclass(frozen=True)
class Result:
    """Of each text its labels and, where asked for, what members say."""

    answers: list[Answer]
    members: list[list[dict[str, Any]]] | None = None


class Batcher:
    """A thread that answers jobs.

    Args:
        size: texts answered together; a job of more is answered alone.
        waiting: texts that may wait.
        seen: is told the texts of every batch.
    """

    def __init__(
        self,
        size: int,
        waiting: int,
        seen: Callable[[int], object] = lambda texts: None,
    ) -> None:
        self._size = size
        self._most = waiting
        self._seen = seen
        self._waiting = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return self._waiting

    def submit(self, job: Job) -> Future[Result]:
        """Have a job answered.

        Raises:
            Problem: 503, too many texts wait.
        """
        with self._lock:
            if self._waiting + len(job.texts) > self._most:
                raise Problem(
                    503,
                    f"too many texts wait: {self._waiting:,}, of {self._most:,} at most; try again",
                    {"Retry-After": "1"},
                )
            self._waiting += len(job.texts)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        following = self._jobs.get()
        while following is not None:
            batch, following = self._batch(following)
            with self._lock:
                self._waiting -= sum(len(job.texts) for job in batch)
            asked = [job for job in batch if job.future.set_running_or_notify_cancel()]
            self._seen(sum(len(job.texts) for job in asked))
            answer_together(asked)
            if following is _NONE:
                following = self._jobs.get()

    def _batch(self, first: Job) -> tuple[list[Job], Job | None]:
        """Jobs that wait, from `first` on; and what comes after them, _NONE if nothing waits."""
        batch = [first]
        texts = len(first.texts)
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, _NONE
            if job is None or texts + len(job.texts) > self._size:
                return batch, job
            batch.append(job)
            texts += len(job.texts)


_NONE: Any = object()  # nothing waits


def answer_together(jobs: Sequence[Job]) -> None:
    """Set the futures of jobs, those of one kind by one call of the model.

    Where a call fails its jobs are answered one by one: none suffers from another.
    """
    kinds: dict[Hashable, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    for same in kinds.values():
        try:
            _answer(same)
        except Exception as error:
            if len(same) > 1:
                log.warning("%d requests are answered one by one: %s", len(same), error)
                for job in same:
                    answer_together([job])
            else:
                log.exception("a request of %d texts failed", len(same[0].texts))
                _set(same[0].future.set_exception, error)


def _answer(jobs: Sequence[Job]) -> None:
    """Answer jobs of one kind."""
    first = jobs[0]
    texts = [text for job in jobs for text in job.texts]
    k = max(job.k for job in jobs)
    answers = first.model.answer(texts, k, first.chosen, first.threshold == AUTO)
    start = 0
    for job in jobs:
        own = [_kept(answer, job) for answer in answers[start : start + len(job.texts)]]
        start += len(job.texts)
        members = first.model.explain(job.texts, own) if job.explain else None
        _set(job.future.set_result, Result(own, members))


def _kept(answer: Answer, job: Job) -> Answer:
    """What a job asks for of its text's answer."""
    if not isinstance(job.threshold, float):
        return answer[: job.k]
    return [label for label in answer[: job.k] if label["probability"] >= job.threshold]


def _set(setter: Callable[[Any], None], value: Any) -> None:
    """Set a future that may have been answered or given up meanwhile."""
    with contextlib.suppress(InvalidStateError):
        setter(value)
