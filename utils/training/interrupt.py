"""When to save: on a clock, and on SIGTERM or Ctrl-C; all processes agree on the step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from utils import distributed


class Interrupted(Exception):
    """Training stopped on a signal after saving.

    Attributes:
        signal_number: which.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM stops the block at once, as Ctrl-C does: for work that keeps what it has finished."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(
            "stopped by SIGTERM; what was finished is kept; go on with the same command and "
            "--resume",
            number,
        )

    if not _may_handle_signals():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _may_handle_signals() -> bool:
    """Whether this is the main thread: in others Python forbids handlers."""
    return threading.current_thread() is threading.main_thread()


class SaveClock:
    """Context that notes SIGTERM and SIGINT instead of dying, and tells when to save.

    Args:
        minutes: between two saves.
        every: steps between two agreements with the other processes; each is a message and a host
            sync.
    """

    def __init__(self, minutes: float, every: int) -> None:
        self._seconds = 60 * minutes
        self._every = every
        self._calls = 0
        self._last = time.monotonic()
        self._received = 0
        self._parent = os.getppid()
        self._previous: dict[int, Any] = {}  # handlers

    def __enter__(self) -> SaveClock:
        if _may_handle_signals():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self._received = number

    def due(self) -> bool:
        """Tell, after each step and on every process alike, whether it is time to save."""
        self._calls += 1
        if distributed.world_size() > 1:
            if os.getppid() != self._parent:
                # The launcher was killed: nobody watches over these any more.
                self._received = self._received or signal.SIGTERM
            if self._calls % self._every:
                return False
            self._received = distributed.agree(self._received)
            if self._received:
                return True
            return bool(distributed.agree(int(self._elapsed())))
        return bool(self._received) or self._elapsed()

    def _elapsed(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def saved(self) -> None:
        """Start the clock anew after a checkpoint, and stop here if a signal asked for it."""
        self._last = time.monotonic()
        self._received = distributed.agree(self._received)  # it reaches one process after the other
        if self._received:
            name = signal.Signals(self._received).name
            raise Interrupted(
                f"stopped by {name} after saving; go on with the same command and --resume",
                self._received,
            )
