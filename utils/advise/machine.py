"""How fast this machine is, by a second of work: what measured costs are scaled by.

speed = calibrate(threads=2)
speed.products        # 1.0 on the machine that utils/advise/costs.py was measured on
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# of the machine that the costs were measured on, one thread
PRODUCT_SECONDS = 0.0166  # 512 x 384 times 384 x 4,096 in float32
PASS_SECONDS = 0.0156  # exp of 512 x 4,096 numbers
LOOP_SECONDS = 0.0042  # 200,000 turns of a loop of Python
REPEATS = 9
MOST_GAIN = 0.55  # of another thread


@dataclass(frozen=True)
class Speed:
    """Seconds here for a second there.

    Attributes:
        products: of matrix products.
        passes: of passes over memory.
        loops: of Python, texts and kernels of one thread.
        threads: that a run may use.
    """

    products: float = 1.0
    passes: float = 1.0
    loops: float = 1.0
    threads: int = 1

    @property
    def together(self) -> float:
        """How many times as fast all threads are as one, where work is shared well."""
        return 1 + MOST_GAIN * (self.threads - 1)


def calibrate(threads: int) -> Speed:
    """Time three small pieces of work on one thread, each several times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        left = torch.rand(512, 384, generator=generator)
        right = torch.rand(384, 4096, generator=generator)
        numbers = left @ right
        return Speed(
            _seconds(lambda: left @ right) / PRODUCT_SECONDS,
            _seconds(lambda: torch.exp(numbers)) / PASS_SECONDS,
            _seconds(_loop) / LOOP_SECONDS,
            threads,
        )
    finally:
        torch.set_num_threads(before)


def _loop() -> int:
    total = 0
    for number in range(200_000):
        total += number & 7
    return total


def _seconds(work: Callable[[], object]) -> float:
    """The median time of some work, after a first time that does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.thread_time()  # what other programs take is not this machine's speed
        work()
        times.append(time.thread_time() - started)
    return float(np.clip(statistics.median(times), 1e-9, None))
