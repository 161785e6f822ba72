"""What a caller of `fit` is told of a run at each of its evaluations, and may end it by.

def watch(found):
    print(found.epoch, found.metrics["nDCG@5"])
    return found.epoch >= 3 and found.metrics["nDCG@5"] < 20      # True: train no further

fit(config, on_evaluation=watch)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils import distributed


@dataclass(frozen=True)
class EpochEvaluation:
    """A run after an evaluation on its validation split.

    Attributes:
        stage: its name; "" where the config has no stages.
        epoch: that has ended, from 1; 0 of a method that is fitted at once.
        step: steps of the run so far.
        loss: the mean of the epoch.
        metrics: in percent, by name (P@1, nDCG@5, ...); {} without validation points.
        tracked: name of the metric that selects the model; "" where the loss does.
        is_best: whether it is better than all before it, so that `model/` is of this epoch.
        folder: of the run, or of the stage.
    """

    stage: str
    epoch: int
    step: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracked: str = ""
    is_best: bool = False
    folder: Path = Path()

    @property
    def value(self) -> float:
        """By which the model is selected: the more the better."""
        return self.metrics[self.tracked] if self.tracked else -self.loss


OnEvaluation = Callable[[EpochEvaluation], object]  # what answers true ends the stage


def asks_to_stop(on_evaluation: OnEvaluation | None, found: EpochEvaluation) -> bool:
    """Whether the callback's answer is true; a collective: the main process alone calls it.

    Raises:
        RuntimeError: on the other processes, where it raised an error on the main one.
    """
    if on_evaluation is None:
        return False
    answer = False
    error: BaseException | None = None
    if distributed.is_main():
        try:
            answer = bool(on_evaluation(found))
        except BaseException as raised:
            error = raised
    has_failed, answer = distributed.broadcast((error is not None, answer))
    if error is not None:
        raise error
    if has_failed:
        raise RuntimeError("on_evaluation raised an error on the main process")
    return answer
