"""How far long work is: a bar on a terminal, elsewhere a log line a minute; the one door to tqdm.

    with ProgressBar(len(texts), "tokenise", "texts") as bar:
        ...
        bar.update()

tqdm guards its output by a lock that all forks of a process share (a semaphore of multiprocessing).
A child that is killed while it writes takes that lock with it, and every other process waits for
ever. Here no two processes share a lock: threads have one, and a fork begins with a fresh one,
which nobody holds.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from utils.compiling import working_time

__all__ = ["ProgressBar", "followed", "tqdm"]

log = logging.getLogger(__name__)
LINE_SECONDS = 60.0  # between two log lines
NOTE_SECONDS = 2.0  # between two notes on a bar
TAKEN = 1024  # small items between two looks at the clock
Item = TypeVar("Item")


def _own_lock() -> None:
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)


class ProgressBar(tqdm):
    """Progress of one phase of work.

    On a terminal it is tqdm's bar, which leaves nothing behind. Where stderr is none, as under
    SLURM or nohup, a line a minute goes to the log, from work that takes longer than that.

    Args:
        total: of units; None = not known.
        name: of the phase.
        unit: what is counted, in the plural.
        done: units that were done before.
        scaled: write 12.3M for many units.
        note: what else is to be said, asked each time that it is shown.
        hidden: show nothing.
    """

    def __init__(
        self,
        total: int | None,
        name: str,
        unit: str,
        *,
        done: int = 0,
        scaled: bool = False,
        note: Callable[[], str] | None = None,
        hidden: bool = False,
    ) -> None:
        on_screen = not hidden and sys.stderr.isatty()
        super().__init__(
            total=total,
            desc=name,
            unit=f" {unit}",
            unit_scale=scaled,
            initial=done,
            leave=False,
            disable=not on_screen,
        )
        self._name = name
        self._units = unit
        self._is_scaled = scaled
        self._note = note
        self._done_before = done
        self._seconds = NOTE_SECONDS if on_screen else LINE_SECONDS
        self._is_silent = hidden
        self._begun = working_time()
        self._shown = time.monotonic()
        self._has_lines = False

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` units more."""
        done = 1 if n is None else n
        is_due = not self._is_silent and time.monotonic() - self._shown >= self._seconds
        if self.disable:
            self.n += done
            if is_due:
                self._write_line()
            return None
        if is_due and self._note is not None:
            self._shown = time.monotonic()
            self.set_postfix_str(self._note(), refresh=False)
        return super().update(done)

    def close(self) -> None:
        """End the bar; where lines were written one says so."""
        if self.disable and self._has_lines:
            self._has_lines = False
            seconds = working_time() - self._begun
            done = f"{self._number(self.n)} {self._units}"
            log.info("%s: %s in %s", self._name, done, tqdm.format_interval(seconds))
        super().close()

    def _write_line(self) -> None:
        self._shown = time.monotonic()
        if not log.isEnabledFor(logging.INFO):  # on other processes than the main one
            return
        self._has_lines = True
        note = f"; {self._note()}" if self._note is not None else ""
        log.info("%s: %s%s", self._name, self._state(), note)

    def _state(self) -> str:
        """How much is done, how fast, and how long the rest takes."""
        seconds = max(working_time() - self._begun, 1e-9)
        rate = (self.n - self._done_before) / seconds
        speed = f"{self._number(rate) if rate >= 1000 else f'{rate:.3g}'} {self._units}/s"
        if not self.total:
            return f"{self._number(self.n)} {self._units}, {speed}"
        share = 100 * self.n / self.total
        left = (self.total - self.n) / rate if rate > 0 else 0.0
        return (
            f"{self._number(self.n)} of {self._number(self.total)} {self._units} ({share:.0f} %), "
            f"{speed}, {tqdm.format_interval(left)} left"
        )

    def _number(self, count: float) -> str:
        is_long = self._is_scaled and count >= 1000
        return tqdm.format_sizeof(count) if is_long else f"{count:.0f}"


def followed(
    items: Iterable[Item],
    name: str,
    unit: str,
) -> Iterator[Item]:
    """Yield items and show how many were taken; for items that are many and small."""
    with ProgressBar(None, name, unit, scaled=True) as bar:
        waiting = 0  # items that the bar does not know of
        for item in items:
            yield item
            waiting += 1
            if waiting == TAKEN:
                bar.update(waiting)
                waiting = 0
        bar.update(waiting)
