"""What probabilities and thresholds of a run make of an evaluated split; the main process alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from engine.deciding import GOAL_NAMES, told
from models.contract import Ranker
from utils import metrics
from utils.answering.decisions import (
    COLUMNS,
    LabelTable,
    coverage_error,
    decision_metrics,
    label_table,
    threshold_grid,
)
from utils.answering.judged import SHOWN
from utils.answering.thresholds import Thresholds
from utils.data.dataset import Dataset
from utils.errors import InputError
from utils.report.html import ReportData
from utils.sparse import canonical, contains, entry_rows, lookup, topk_csr, topk_rows

log = logging.getLogger("eval")
AT_ONCE = 1 << 14  # points whose probabilities are computed together
MOST_LABELS = 5000  # of a report's table
WHERE = {  # what may be said of each split
    "tst": "test points",
    "trn": "training points, which the model knows",
    "val": "validation points, which calibration and thresholds were fitted on",
}


@dataclass(frozen=True)
class Decided:
    """What was found of a split.

    Attributes:
        metrics: F1 and the like at the run's threshold, and coverage, in percent but for
            `coverage_error`.
        told: what else a metrics file has.
        labels: label by label.
        report: fields of `ReportData`.
    """

    metrics: dict[str, float]
    told: dict[str, Any]
    labels: LabelTable
    report: dict[str, Any] = field(default_factory=dict)


def decide(
    ranker: Ranker,
    data: Dataset,
    split: str,
    scores: sp.csr_matrix,
) -> Decided:
    """Judge the scores of a split's points [n, L] by the run's probabilities and thresholds."""
    scores = canonical(scores)
    relevance = data.splits[split].relevance
    probabilities = probabilities_of(ranker, scores)
    found = {"coverage_error": coverage_error(scores, relevance)}
    facts: dict[str, Any] = {"score_is": ranker.score_is}
    report: dict[str, Any] = {"score_is": ranker.score_is}
    answers = None
    thresholds = thresholds_of(ranker)
    if probabilities is not None:
        best = _of_best(probabilities, scores)
        right = contains(relevance, entry_rows(best), best.indices)
        bins, which = _bins(ranker, split, best, right)
        if bins is not None:
            report["reliability"] = bins
            report["ece"] = metrics.expected_calibration_error(bins)
            facts["ECE"] = round(report["ece"], 2)
            facts["ECE_of"] = f"the {SHOWN} best labels, {which}"
    if probabilities is not None and thresholds is not None:
        answers = _answers(probabilities, thresholds)
        found.update(decision_metrics(answers, relevance))
        report["threshold_curve"] = threshold_grid(probabilities, relevance)
        facts["threshold"] = told(ranker.decider, ranker.config.eval)["threshold"]
        report["threshold"] = {
            "value": thresholds.value,
            "chosen_for": ranker.config.eval.threshold_for,
            "labels": len(thresholds.labels),
        }
    ranked = scores if probabilities is None else probabilities
    table = label_table(ranked, relevance, data.label_counts, answers)
    report["label_table"] = _shown_labels(table, data)
    rounded = {name: round(value, 4) for name, value in found.items()}
    return Decided(rounded, facts, table, report)


def probabilities_of(ranker: Ranker, scores: sp.csr_matrix) -> sp.csr_matrix | None:
    """Probabilities in place of scores [n, L]; None where nothing tells them."""
    parts = []
    width = max(int(np.diff(scores.indptr).max(initial=1)), 1)
    for start in range(0, scores.shape[0], AT_ONCE):
        ids, values = topk_rows(scores[start : start + AT_ONCE], width)
        found = ranker.probabilities(values, ids, values)
        if found is None:
            return None
        parts.append(topk_csr(found.astype(np.float32), ids, scores.shape[1]))
    return sp.vstack(parts, "csr") if parts else scores


def _of_best(probabilities: sp.csr_matrix, scores: sp.csr_matrix) -> sp.csr_matrix:
    """Probabilities of the SHOWN labels of each point with the best scores [n, L]."""
    ids, _ = topk_rows(scores, min(SHOWN, scores.shape[1]))
    rows = np.arange(len(ids))[:, None]
    return topk_csr(lookup(probabilities, rows, ids), ids, scores.shape[1])


def thresholds_of(ranker: Ranker) -> Thresholds | None:
    """Return the thresholds for `eval.threshold_for`; None where there are none, which is said."""
    if ranker.decider is None:
        log.info("no F1: the run had no validation points to choose a threshold on")
        return None
    try:
        return ranker.decider.thresholds(ranker.config.eval)
    except InputError as error:
        log.warning("no F1: %s", error)
        return None


def _answers(probabilities: sp.csr_matrix, thresholds: Thresholds) -> sp.csr_matrix:
    """Ones where a label's probability is at least its threshold [n, L]."""
    is_answer = probabilities.data >= thresholds.of(probabilities.indices)
    rows = entry_rows(probabilities)[is_answer]
    ones = np.ones(len(rows), np.int8)
    return sp.csr_matrix((ones, (rows, probabilities.indices[is_answer])), probabilities.shape)


def _bins(
    ranker: Ranker,
    split: str,
    probabilities: sp.csr_matrix,
    right: np.ndarray,
) -> tuple[dict[str, list[float]] | None, str]:
    """Reliability of each point's best labels, and which predictions it is of.

    Of validation points it is that of cross-fitting: they were fitted on.

    Args:
        probabilities: of these labels alone.
        right: whether they are [M] bool.
    """
    if split == "val" and ranker.decider is not None:
        return ranker.decider.reliability, "cross-fitted"
    bins = metrics.reliability(probabilities.data.astype(np.float64), right)
    return bins, WHERE.get(split, split)


def _shown_labels(table: LabelTable, data: Dataset) -> dict[str, Any]:
    """The most frequent labels of the split for a report."""
    most = np.lexsort((-table.training_points, -table.points))[:MOST_LABELS]
    rows = list(table.rows(most, data.label_texts))
    return {"columns": list(COLUMNS), "rows": rows, "hidden": len(table.points) - len(rows)}


def describe(
    decided: Decided,
    ranker: Ranker,
    split: str,
) -> str:
    """What was found, as lines for the log."""
    found = decided.metrics
    lines = []
    if "micro_F1" in found:
        assert ranker.decider is not None, "it told the threshold"
        threshold = told(ranker.decider, ranker.config.eval)["threshold"]
        own = threshold["label_thresholds"]
        lines.append(
            f"at the threshold for {GOAL_NAMES[threshold['for']]}, {threshold['value']}"
            f"{f', of their own {own} labels' if own else ''} ({WHERE.get(split, split)}):"
        )
        lines.append("         precision  recall      F1")
        for name in ("micro", "macro", "example"):
            values = (found[f"{name}_{kind}"] for kind in ("precision", "recall", "F1"))
            lines.append(f"{name:<10}" + "".join(f"{value:8.2f}" for value in values))
        lines.append(f"points that get a label: {found['answered']:.2f} %")
    lines.append(
        f"labels until all true ones are among them (coverage error): {found['coverage_error']:.1f}"
    )
    if "ECE" in decided.told:
        error = decided.told["ECE"]
        lines.append(f"expected calibration error: {error:.2f} % ({decided.told['ECE_of']})")
    return "\n".join(lines)


def with_decided(report: ReportData, decided: Decided) -> ReportData:
    """The report with what was decided."""
    found = {**report.metrics, **decided.metrics}
    return replace(report, metrics=found, **decided.report)
