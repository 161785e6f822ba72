"""Compiled work on a CPU's threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from utils import distributed


def over_threads(work: Callable[[int, int], None], rows: int) -> None:
    """Call work(first, last) for shares of so many rows, one a thread.

    The work must let go of Python's lock.
    """
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1:
        work(0, rows)
        return
    shares = [distributed.share(rows, part, threads) for part in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # not kept: a process that forks must not own threads
        list(pool.map(lambda share: work(share.start, share.stop), shares))
