"""All that every method must do.

check_recipe("my_module:MyRecipe", tmp_path)       # in half a minute
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.conformance.answers import check_answers, check_learning, check_saving
from engine.conformance.case import Case
from engine.conformance.learners import (
    check_evaluation_changes_nothing,
    check_resuming,
    check_steps,
)
from engine.conformance.processes import check_processes
from models.contract import Learner
from utils.config.methods import method_class

EPOCHS = 15  # in which a method learns the made data set


def check_recipe(
    name: str,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    sections: Mapping[str, Any] | None = None,
    processes: int = 2,
) -> None:
    """Put a method through everything that the methods of this repository must do.

    It is trained on a made data set of 20 labels whose texts say other words than the labels, so
    that it has to learn. Dropout must be 0: several processes draw other numbers.

    Args:
        name: of the method, `my_module:MyRecipe`; its module is imported.
        folder: an empty one, for data and runs.
        options: of section `method`.
        sections: others of the config, {"loss": {"name": "my_module:my_loss"}}.
        processes: on how many it must train and answer as on one.
    Raises:
        AssertionError: saying what the method does not do.
    """
    method = {"name": name, **(options or {})}
    case = Case.made({**(sections or {}), "method": method}, folder)
    config = _patient(case).config("learned")
    run = check_learning(config)
    check_answers(run)
    check_saving(run, folder / "again")
    if issubclass(method_class(name), Learner):
        check_steps(config, folder / "steps")
        check_resuming(case)
        check_evaluation_changes_nothing(case)
    check_processes(case.with_few_points(), processes)


def _patient(case: Case) -> Case:
    """The case with enough epochs, where it does not say how many."""
    train = {"epochs": EPOCHS, **case.sections.get("train", {})}
    return replace(case, sections={**case.sections, "train": train})
