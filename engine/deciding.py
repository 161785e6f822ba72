"""Fit, beside a model that is saved, what makes decisions of its scores; and say how good it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from models.contract import Ranker, Recipe
from models.evaluation import Evaluation
from utils.answering.decider import DECIDER, Decider, fit_decider
from utils.config.sections import EvalConfig
from utils.errors import InputError

log = logging.getLogger("train")
GOAL_NAMES = {"micro_f1": "micro-F1", "macro_f1": "macro-F1", "precision": "precision"}


def decider_of(
    recipe: Recipe,
    ranker: Ranker,
    evaluation: Evaluation | None,
) -> Decider | None:
    """Probabilities and thresholds of a model that is about to be saved; on the main process.

    Args:
        evaluation: of the validation points by this model; None where there are none.
    Returns:
        None where nothing can tell them.
    """
    if evaluation is None:
        return recipe.taken_decider()
    scores = recipe.held_out_scores()
    if scores is None:
        scores = evaluation.scores
    assert scores is not None, "the main process has them"
    said = ranker.probabilities(scores.data[None], scores.indices[None], scores.data[None])
    relevance = recipe.data.splits["val"].relevance
    return fit_decider(scores, relevance, None if said is None else said[0])


def save_decider(decider: Decider | None, model: Path) -> None:
    """Write it beside a model that nobody reads yet; what a copied model had there goes."""
    (model / DECIDER).unlink(missing_ok=True)
    if decider is not None:
        decider.save(model / DECIDER)


def told(decider: Decider | None, options: EvalConfig) -> dict[str, Any]:
    """What a metrics file says of the validation points: all held out, in percent."""
    if decider is None:
        return {}
    facts: dict[str, Any] = {"ECE": round(decider.ece, 2), "ECE_points": decider.num_points}
    goal = options.threshold_for
    try:
        thresholds = decider.thresholds(options)
    except InputError:
        return facts
    facts["threshold"] = {
        "for": goal,
        "value": round(thresholds.value, 4),
        "label_thresholds": len(thresholds.labels),
    }
    if goal in decider.chosen:
        names = ("precision", "recall", GOAL_NAMES[goal])
        held_out = (100 * decider.chosen[goal].held_out).round(2).tolist()
        facts["threshold"]["cross_fitted"] = dict(zip(names, held_out, strict=True))
    return facts


def log_decider(
    model: Path,
    num_labels: int,
    options: EvalConfig,
) -> None:
    """Say what lies beside a saved model, or that nothing does."""
    if not (model / DECIDER).is_file():
        log.info(
            "no validation points: answers have no probabilities, and predict.py no --threshold"
        )
        return
    decider = Decider.load(model / DECIDER, num_labels)
    facts = told(decider, options)
    log.info(
        "probabilities calibrated on %d validation points: expected calibration error %.2f %% of "
        "their best labels (cross-fitted)",
        decider.num_points,
        decider.ece,
    )
    if "threshold" not in facts:
        log.warning(
            "no threshold reaches eval.wanted_precision %g on the validation points",
            options.wanted_precision,
        )
        return
    threshold = facts["threshold"]
    scores = ", ".join(
        f"{name} {value}" for name, value in threshold.get("cross_fitted", {}).items()
    )
    log.info(
        "threshold for %s %.3f, of their own %d labels%s",
        GOAL_NAMES[threshold["for"]],
        threshold["value"],
        threshold["label_thresholds"],
        f"; cross-fitted {scores}" if scores else "",
    )
