"""A config trained as train.py would, while someone looks at each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from engine import trainer
from utils.config.config import Config

Watch = Callable[[int], None]  # told the number of steps so far, the first being 1


class Enough(Exception):
    """Raised by who watches a run, to end it."""


def trained(
    config: Config,
    resume: bool = False,
    watch: Watch | None = None,
) -> tuple[Path, list[float]]:
    """Train a config with all its stages, or until `watch` raises Enough.

    Returns:
        the run folder, and the loss of every step.
    """
    losses: list[Tensor] = []

    class Meter(trainer.EpochMeter):
        def add(self, loss: Tensor, *counted: Any) -> None:
            super().add(loss, *counted)
            losses.append(loss.detach())
            if watch is not None:
                watch(len(losses))

    with mock.patch.object(trainer, "EpochMeter", Meter), contextlib.suppress(Enough):
        trainer.fit(config, resume, overwrite=not resume)
    return config.run_folder, [float(loss) for loss in losses]


def relative(found: float, expected: float) -> float:
    """Difference of two losses beside the expected one; beside 0.001 where that is smaller."""
    return abs(found - expected) / max(abs(expected), 1e-3)
