"""How much of a run is left, in steps and in time."""

from __future__ import annotations

from dataclasses import dataclass

from utils.progress import tqdm


@dataclass
class Pace:
    """What a run, or a stage of one, has before it.

    Attributes:
        name: `run`, or `stage NAME`.
        steps: of all its epochs.
        evaluations: on the validation split, in all its epochs.
        evaluation_seconds: of the last one; 0 before the first.
    """

    name: str
    steps: int
    evaluations: int
    evaluation_seconds: float = 0.0

    def left(self, step: int, step_seconds: float) -> str:
        """Say how far a run is after `step` steps, of which one takes so many seconds."""
        rest = max(self.steps - step, 0)
        seconds = rest * step_seconds
        seconds += self.evaluations * rest / max(self.steps, 1) * self.evaluation_seconds
        left = tqdm.format_interval(seconds)
        return f"{self.name}: step {step} of {self.steps}, {left} left"
