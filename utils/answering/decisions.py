"""How good the answers at a threshold are: F1 of three kinds, coverage, and each label's.

Of labels that stand in a CSR [n, L], never in a dense matrix: a million labels are nothing special.
scikit-learn computes what it can of sparse matrices.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.answering.thresholds import counts_of_labels
from utils.files import written_whole
from utils.sparse import canonical, contains, entry_rows, lookup

COLUMNS = (
    "label",
    "text",
    "training_points",
    "points",
    "predicted",
    "precision",
    "recall",
    "F1",
    "average_precision",
)
STEPS = 100  # thresholds of a curve, evenly from 0 to 1
AVERAGES = {"micro": "micro", "macro": "macro", "example": "samples"}  # our name: scikit-learn's


def decision_metrics(answers: sp.csr_matrix, relevance: sp.csr_matrix) -> dict[str, float]:
    """Precision, recall and F1 of answers, each micro-, macro- and example-averaged, in percent.

    Macro is over the labels that a point has; what has no answer or no label counts as 0. And
    `answered`, the share of points that get a label.

    Args:
        answers: [n, L], an entry where a point gets a label.
        relevance: [n, L], an entry where it has one.
    """
    from sklearn.metrics import precision_recall_fscore_support

    given = _ones(answers)
    true = _ones(relevance)
    there = np.unique(true.indices)
    found: dict[str, float] = {}
    for name, average in AVERAGES.items():
        values: Sequence[float] = (0.0, 0.0, 0.0)
        if len(there) or name != "macro":
            labels = there if name == "macro" else None
            *values, _ = precision_recall_fscore_support(
                true, given, labels=labels, average=average, zero_division=0
            )
        for kind, value in zip(("precision", "recall", "F1"), values, strict=True):
            found[f"{name}_{kind}"] = 100 * float(value)
    found["answered"] = 100 * float((np.diff(given.indptr) > 0).mean())
    return found


def _ones(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """1 where something is stored, as scikit-learn takes it [n, L].

    Of one label it is [n, 2]: scikit-learn takes a single column for classes, which it wants dense.
    """
    matrix = canonical(matrix)
    ones = np.ones(matrix.nnz, np.int8)
    num_points, num_labels = matrix.shape
    shape = (num_points, max(num_labels, 2))
    return sp.csr_matrix((ones, matrix.indices, matrix.indptr), shape)


def coverage_error(scores: sp.csr_matrix, relevance: sp.csr_matrix) -> float:
    """How many of its best labels a point needs on average until all that it has are among them.

    scikit-learn's `coverage_error`, labels without a stored score being tied at the end: a point
    with such a label needs all L. A point without labels needs none.
    """
    scores = canonical(scores)
    relevance = canonical(relevance)
    points = entry_rows(relevance)
    stored = contains(scores, points, relevance.indices)
    num_points, num_labels = scores.shape
    lowest = np.full(num_points, np.inf)  # score of a point's labels
    values = lookup(scores, points[stored], relevance.indices[stored])
    np.minimum.at(lowest, points[stored], values)
    rows = entry_rows(scores)
    needed = np.bincount(rows[scores.data >= lowest[rows]], minlength=num_points)
    needed[points[~stored]] = num_labels
    return float(needed.mean())


def threshold_grid(
    probabilities: sp.csr_matrix,
    relevance: sp.csr_matrix,
) -> dict[str, list[float]]:
    """What each of STEPS even thresholds of all labels gives, those that let something through.

    Args:
        probabilities: CSR [n, L].
        relevance: CSR [n, L].
    Returns:
        lists of equal length: threshold, ascending; precision, recall, micro_F1 and macro_F1 in
        percent.
    """
    probabilities = canonical(probabilities)
    positives = np.bincount(relevance.indices, minlength=relevance.shape[1])
    there = positives > 0
    step = np.minimum((probabilities.data * STEPS).astype(np.int64), STEPS)
    order = np.argsort(-step, kind="stable")
    labels = probabilities.indices[order]
    right = contains(relevance, entry_rows(probabilities)[order], labels)
    thresholds = np.arange(STEPS, -1, -1)
    ends = np.searchsorted(-step[order], -thresholds, side="right")
    count = np.zeros(len(positives), np.int64)
    hits = np.zeros(len(positives), np.int64)
    macro = []
    for start, end in pairwise([0, *ends.tolist()]):
        part = labels[start:end]
        count += np.bincount(part, minlength=len(count))
        hits += np.bincount(part[right[start:end]], minlength=len(count))
        f1 = 2 * hits[there] / (count + positives)[there]
        macro.append(100 * float(f1.sum()) / max(len(f1), 1))
    found = np.append(0, np.cumsum(right))[ends]
    total = max(int(positives.sum()), 1)
    columns = {
        "threshold": thresholds / STEPS,
        "precision": 100 * found / np.maximum(ends, 1),
        "recall": 100 * found / total,
        "micro_F1": 200 * found / (ends + total),
        "macro_F1": np.array(macro),
    }
    return {name: values[ends > 0][::-1].round(4).tolist() for name, values in columns.items()}


# -------------------------------- label by label


@dataclass(frozen=True)
class LabelTable:
    """What is known of each of L labels; counts and percent, NaN where there is none.

    Attributes:
        training_points: that have it [L].
        points: of the split that have it [L].
        predicted: points that get it as an answer [L]; None where there is no threshold.
        precision: of those the share that have it [L].
        recall: of those that have it the share that get it [L].
        f1: of both [L].
        average_precision: of the points ranked by how well it fits them [L].
    """

    training_points: np.ndarray
    points: np.ndarray
    predicted: np.ndarray | None
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    average_precision: np.ndarray

    def rows(self, labels: np.ndarray, texts: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the values of some labels in the order of COLUMNS, None where there is none.

        Args:
            texts: of all labels.
        """
        shares = (self.precision, self.recall, self.f1, self.average_precision)
        for label in labels.tolist():
            predicted = None if self.predicted is None else int(self.predicted[label])
            yield [
                label,
                texts[label],
                int(self.training_points[label]),
                int(self.points[label]),
                predicted,
                *(_short(values[label]) for values in shares),
            ]

    def write(self, path: Path, texts: Sequence[str], names: Sequence[str] | None = None) -> None:
        """Write labels.csv, a row a label, whole.

        Args:
            texts: of the labels.
            names: their own, a column more at the end; None where they have none.
        """
        every = np.arange(len(self.points))
        with (
            written_whole(path) as partial,
            open(partial, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            if names is None:
                writer.writerow(COLUMNS)
                writer.writerows(self.rows(every, texts))
                return
            writer.writerow([*COLUMNS, "name"])
            named = zip(self.rows(every, texts), names, strict=True)
            writer.writerows([*row, name.strip()] for row, name in named)


def _short(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


def label_table(
    ranked: sp.csr_matrix,
    relevance: sp.csr_matrix,
    training_points: np.ndarray,
    answers: sp.csr_matrix | None,
) -> LabelTable:
    """Count and measure each label.

    Args:
        ranked: how well labels fit points, CSR [n, L]: probabilities, or scores.
        relevance: CSR [n, L].
        training_points: of each label [L].
        answers: CSR [n, L] as of `decision_metrics`; None where there is no threshold.
    """
    num_labels = relevance.shape[1]
    points = np.bincount(relevance.indices, minlength=num_labels)
    unknown = np.full(num_labels, np.nan)
    predicted = None
    precision = unknown
    recall = unknown
    f1 = unknown
    if answers is not None:
        predicted = np.bincount(answers.indices, minlength=num_labels)
        right = contains(relevance, entry_rows(answers), answers.indices)
        hits = np.bincount(answers.indices[right], minlength=num_labels)
        precision = _percent(hits, predicted)
        recall = _percent(hits, points)
        f1 = _percent(2 * hits, predicted + points)
    return LabelTable(
        training_points,
        points,
        predicted,
        precision,
        recall,
        f1,
        average_precisions(ranked, relevance),
    )


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 part / whole [L]; NaN where the whole is 0."""
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def average_precisions(ranked: sp.csr_matrix, relevance: sp.csr_matrix) -> np.ndarray:
    """Average precision of each label over the points in percent [L]; NaN of a label without any.

    As scikit-learn's `average_precision_score` of each column: sum over the distinct values of the
    precision there times the recall it adds. Points without a stored value are tied at the end.
    """
    ranked = canonical(ranked)
    num_points, num_labels = relevance.shape
    labels = ranked.indices
    rows = entry_rows(ranked)
    order = np.lexsort((-ranked.data, labels))
    labels = labels[order]
    right = contains(relevance, rows[order], labels)
    values = ranked.data[order]
    count, hits = counts_of_labels(labels, right)  # among the label's first points
    ends = np.append((labels[1:] != labels[:-1]) | (values[1:] != values[:-1]), True)[: len(labels)]
    hits_at: np.ndarray = hits[ends]
    before = np.append(0, hits_at[:-1])
    before[np.append(True, labels[ends][1:] != labels[ends][:-1])[: len(before)]] = 0
    gains = (hits_at - before) * hits_at / count[ends]
    positives = np.bincount(relevance.indices, minlength=num_labels)
    found = np.bincount(labels[right], minlength=num_labels)
    summed = np.bincount(labels[ends], gains, minlength=num_labels)
    summed += (positives - found) * positives / max(num_points, 1)  # those tied at the end
    return _percent(summed, positives)
