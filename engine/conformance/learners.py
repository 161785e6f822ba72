"""What steps do to a Learner and its ranker: functions that raise where it is not so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engine.conformance.answers import no_collectives
from engine.conformance.case import Case, decisions_of, logged, measured, state_of
from engine.conformance.processes import TEXTS
from engine.planning import plan_recipe
from engine.trainer import fit, read_data
from models.contract import Learner, Recipe
from models.loading import start_of
from utils.config.config import Config
from utils.config.methods import method_class
from utils.data.batches import training_batches
from utils.data.texts import ListTexts
from utils.run.stages import member_stages
from utils.runtime import Runtime
from utils.training.optim import build_optimizers


def check_steps(config: Config, folder: Path) -> None:
    """Evaluate, step, evaluate: the scores are others, and the loss is one finite number.

    Args:
        config: of a run whose earlier stages have been trained.
        folder: for what the learner prepares.
    """
    *_, stage = plan_recipe(member_stages(config)).values()
    learner = _recipe_of(stage)
    assert isinstance(learner, Learner)
    folder.mkdir(parents=True)
    optimizers = build_optimizers(learner.groups(), stage.optim)
    learner.prepare(folder)
    learner.begin(0)
    before = _scores_of(learner)
    split = learner.data.splits["trn"]
    batch = next(iter(training_batches(split, learner.order(0), stage, 0)))
    learner.module.train()
    loss = learner.backward(batch.to(learner.runtime.device))
    assert loss.shape == () and torch.isfinite(loss), f"backward gives a loss of {loss}"
    assert not loss.requires_grad, "backward gives a loss that holds on to its graph: detach it"
    for optimizer in optimizers:
        optimizer.step()
    after = _scores_of(learner)
    assert (before != after).any(), (
        "a step does not change the scores: ranker() keeps what it saw before, or backward leaves "
        "no gradients on the parameters of groups()"
    )


def _recipe_of(stage: Config) -> Recipe:
    """The recipe of a planned stage, as training makes it."""
    runtime = Runtime.start(stage)
    kind = method_class(stage.method.name)
    return kind(stage, read_data(stage, False), start_of(stage, runtime), runtime)


def _scores_of(learner: Learner) -> np.ndarray:
    """Scores of TEXTS for all labels [n, L]."""
    ranker = learner.ranker()
    labels = np.tile(np.arange(ranker.num_labels), (len(TEXTS), 1))
    with no_collectives():
        return ranker.open(ListTexts(TEXTS), given=True).of(labels).copy()


def check_resuming(case: Case) -> None:
    """Three epochs, and two and then another: the same state and decisions, bit by bit.

    The state is that of parameters and optimizers; decisions are calibration and thresholds.
    """
    epochs = case.with_last_stage(train={"epochs": 3, "eval_interval": 1})
    whole = fit(epochs.config("whole", run={"threads": 1}))
    stopped = epochs.with_last_stage(train={"stop_epoch": 2})
    fit(stopped.config("resumed", run={"threads": 1}))
    resumed = fit(epochs.config("resumed", run={"threads": 1}), resume=True)
    expected = state_of(whole)
    found = state_of(resumed)
    assert expected.keys() == found.keys(), "a resumed run has other parameters"
    others = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not others, f"a resumed run ends with other numbers in {', '.join(others)}"
    decided = decisions_of(whole)
    assert decided, "a run with validation points saves calibration and thresholds"
    found_decided = decisions_of(resumed)
    assert decided.keys() == found_decided.keys(), "a resumed run has other decisions"
    for name, values in decided.items():
        np.testing.assert_array_equal(found_decided[name], values, err_msg=f"resumed: {name}")


def check_evaluation_changes_nothing(case: Case, epochs: int = 3) -> None:
    """Evaluate after every epoch, and at the end alone: the last evaluation sees the same model.

    A ranker that keeps a copy of what it saw at its first evaluation would answer as then; one that
    is evaluated in the tensors of training, and changes them, would lead to another model.
    """
    folders = []
    for interval in (1, epochs):
        # the best model of an earlier stage depends on how often it is evaluated
        changed = case.with_last_stage(train={"epochs": epochs, "eval_interval": interval})
        folders.append(fit(changed.config(f"interval{interval}", run={"threads": 1})))
    often, once = (logged(folder) for folder in folders)
    losses = [[record["loss"] for record in log["train"]] for log in (often, once)]
    assert losses[0] == losses[1], f"evaluation changes training: losses {losses}"
    assert measured(often["val"][-1]) == measured(once["val"][-1]), (
        "the last evaluation is another after earlier ones: a ranker keeps what it saw"
    )
