"""One training process at a time in a run folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from utils import distributed

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: another training run in it is refused until this one ends."""
    if not distributed.is_main():
        yield
        return
    with open(folder / LOCK, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Whether a process trains in the folder now."""
    """Tell whether a training run holds the run folder."""
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False  # left by a process that was killed
