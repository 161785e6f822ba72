"""What compiles its kernels when they are first called: it is said, and is no time of the work.

    begin = working_time()
    ...
    working_time() - begin      # seconds, without those in which kernels were compiled

numba compiles once on a machine and keeps the kernels on disk; torch.compile does so in each run.
"""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)


class CompileClock:
    """Counts the seconds in which anything is being compiled, by whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = 0  # compilations that have begun and not ended: one calls for another
        self._since = 0.0
        self._seconds = 0.0
        self._is_told = False

    def start(self) -> None:
        """A compilation begins."""
        with self._lock:
            if self._open == 0:
                self._since = time.perf_counter()
            self._open += 1
            told = self._is_told
            self._is_told = True
        if not told:
            log.info("compiling kernels: a first run waits for it, and it is no training time")

    def end(self) -> None:
        """One that had begun ends."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self._seconds += time.perf_counter() - self._since

    def seconds(self) -> float:
        """All so far, with what is being compiled now."""
        with self._lock:
            now = time.perf_counter() - self._since if self._open else 0.0
            return self._seconds + now


CLOCK = CompileClock()
_watched: set[str] = set()  # compilers


def working_time() -> float:
    """A clock in seconds, as `time.perf_counter`, that stands still while kernels are compiled."""
    return time.perf_counter() - CLOCK.seconds()


def compile_seconds() -> float:
    """Seconds of this process in which kernels were compiled."""
    return CLOCK.seconds()


def watch_numba() -> None:
    """Count what numba compiles from here on."""
    if "numba" in _watched:
        return
    _watched.add("numba")
    from numba.core import event

    class Compilations(event.Listener):
        def on_start(self, event: object) -> None:
            CLOCK.start()

        def on_end(self, event: object) -> None:
            CLOCK.end()

    event.register("numba:compile", Compilations())


def watch_torch() -> None:
    """Count what torch.compile compiles from here on, the backward passes too."""
    if "torch" in _watched:
        return
    _watched.add("torch")
    from torch._dynamo.callback import callback_handler  # seconds, and for train.compile alone

    callback_handler.register_start_callback(lambda *_: CLOCK.start())
    callback_handler.register_end_callback(lambda *_: CLOCK.end())
