"""Progress bars: the one door to tqdm.

tqdm guards its output by a lock that all forks of a process share (a semaphore of multiprocessing).
A child that is killed while it writes takes that lock with it, and every other process waits for
ever. Here no two processes share a lock: threads have one, and a fork begins with a fresh one,
which nobody holds.
"""

from __future__ import annotations

import os
import threading

from tqdm import tqdm

__all__ = ["tqdm"]


def _own_lock() -> None:
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)
