"""Thresholds of probabilities, chosen on points whose labels are known.

    curve = threshold_curve(probabilities, judged)        # what every threshold gives
    chosen = choose_thresholds(probabilities, judged)     # by goal: {"micro_f1": ..., ...}

A prediction counts where its probability is at least the threshold. Micro-F1 is of all pairs of
points and labels together; macro-F1 is the mean F1 of the labels that some of the points have. A
label with enough points may have a threshold of its own, drawn toward that of all: where these
are better on points that they were not chosen on, and else none has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.answering.judged import Judged
from utils.fusing.cross_fitting import FOLDS

GOALS = ("micro_f1", "macro_f1")  # what thresholds are chosen for beforehand
LABEL_POINTS = 10  # of a label that has a threshold of its own, at least
SHRINKAGE = 20  # points of a label for which its own threshold and that of all weigh the same
EDGE = 1e-6  # nearest that a threshold comes to 0 and 1 before its log-odds are taken

# of `threshold_curve`: fractions, and a number
COLUMNS = ("threshold", "precision", "recall", "micro_F1", "macro_F1", "predictions")


@dataclass(frozen=True)
class Thresholds:
    """A threshold of all labels, and those of single ones.

    Attributes:
        value: of all labels that have none of their own.
        labels: ids of those that have, ascending [m] int64.
        values: theirs [m].
    """

    value: float
    labels: np.ndarray
    values: np.ndarray

    @classmethod
    def of_all(cls, value: float) -> Thresholds:
        """The same for every label."""
        return cls(value, np.empty(0, np.int64), np.empty(0))

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Return the threshold of each of some labels, of any shape; that of all for the id -1."""
        found = np.full(labels.shape, self.value)
        if len(self.labels):
            place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
            found = np.where(self.labels[place] == labels, self.values[place], found)
        return found


# -------------------------------- what thresholds give


def threshold_curve(probabilities: np.ndarray, judged: Judged) -> np.ndarray:
    """Return what each threshold that changes something gives.

    Args:
        probabilities: of the predictions [M].
    Returns:
        [C, 6] float64, the columns COLUMNS, highest threshold first.
    """
    order = np.argsort(-probabilities, kind="stable")
    right = judged.right[order]
    positives = judged.positives()
    hits = np.cumsum(right)
    count = np.arange(1, len(order) + 1)
    gains = _macro_gains(judged.labels[order], right, positives)
    with_points = max(int(np.count_nonzero(positives)), 1)
    curve = np.stack(
        [
            _between(probabilities[order]),
            hits / count,
            hits / max(int(positives.sum()), 1),
            2 * hits / np.maximum(count + positives.sum(), 1),
            np.clip(np.cumsum(gains) / with_points, 0.0, 1.0),  # sums of floats round
            count,
        ],
        1,
    )
    return curve[_ends(probabilities[order])]


def _between(values: np.ndarray) -> np.ndarray:
    """Thresholds that let values [M], highest first, through up to each: halfway to the next."""
    return (values + np.append(values[1:], 0.0)) / 2 if len(values) else values


def _ends(values: np.ndarray) -> np.ndarray:
    """Whether the next of sorted values is another [M] bool: equal ones come together."""
    return np.append(values[1:] != values[:-1], True)[: len(values)]


def _macro_gains(
    labels: np.ndarray,
    right: np.ndarray,
    positives: np.ndarray,
) -> np.ndarray:
    """What each prediction, let through after those before it, adds to the sum of labels' F1 [M].

    Args:
        labels: ids [M] of predictions, the most likely first.
        right: [M] bool.
        positives: points of each label [L].
    """
    order = np.argsort(labels, kind="stable")
    count, hits = counts_of_labels(labels[order], right[order])
    f1 = 2 * hits / (count + positives[labels[order]])
    f1[positives[labels[order]] == 0] = 0.0
    before = np.append(0.0, f1[:-1])
    before[count == 1] = 0.0
    gains = np.empty(len(labels))
    gains[order] = f1 - before
    return gains


def counts_of_labels(labels: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the predictions, and the right ones, of each one's label up to itself: [M] each.

    Args:
        labels: sorted ids [M].
    """
    first = np.searchsorted(labels, labels)
    total = np.cumsum(right)
    count = np.arange(1, len(labels) + 1) - first
    return count, total - (total - right)[first]


def measured(
    is_answer: np.ndarray,
    judged: Judged,
    goal: str,
) -> float:
    """Micro- or macro-F1 of some predictions [M] bool being the answers."""
    positives = judged.positives()
    hits = is_answer & judged.right
    if goal == "micro_f1":
        return float(2 * hits.sum() / max(is_answer.sum() + positives.sum(), 1))
    there = np.flatnonzero(positives)
    right = np.bincount(judged.labels[hits], minlength=judged.num_labels)[there]
    count = np.bincount(judged.labels[is_answer], minlength=judged.num_labels)[there]
    return float((2 * right / (count + positives[there])).sum() / max(len(there), 1))


def precision_recall(is_answer: np.ndarray, judged: Judged) -> tuple[float, float]:
    """Precision and recall of some predictions [M] bool being the answers; 0 of none."""
    hits = int((is_answer & judged.right).sum())
    return hits / max(int(is_answer.sum()), 1), hits / max(judged.relevance.nnz, 1)


# -------------------------------- choosing


@dataclass(frozen=True)
class Chosen:
    """Thresholds for a goal.

    Attributes:
        thresholds: chosen on all points.
        held_out: precision, recall and F1 (of the goal) of the points, each by thresholds that were
            chosen on others [3].
    """

    thresholds: Thresholds
    held_out: np.ndarray


def choose_thresholds(
    probabilities: np.ndarray,
    judged: Judged,
    held_out: np.ndarray | None = None,
) -> dict[str, Chosen]:
    """Choose thresholds for each of GOALS.

    Args:
        probabilities: of the predictions [M].
        held_out: the same by a calibration that was fitted on other points [M]; None = those are.
    """
    held_out = probabilities if held_out is None else held_out
    fold = np.random.default_rng(0).permutation(judged.num_points) % FOLDS
    chosen = {}
    for goal in GOALS:
        plain, own = _held_out_answers(held_out, judged, goal, fold)
        label_wise = measured(own, judged, goal) > measured(plain, judged, goal)
        answers = own if label_wise else plain
        told = (*precision_recall(answers, judged), measured(answers, judged, goal))
        every = np.ones(judged.num_points, bool)
        thresholds = _chosen(probabilities, judged, goal, every)
        if not label_wise:
            thresholds = Thresholds.of_all(thresholds.value)
        chosen[goal] = Chosen(thresholds, np.array(told))
    return chosen


def _held_out_answers(
    probabilities: np.ndarray, judged: Judged, goal: str, fold: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Answers [M] bool by thresholds of other folds: by one of all labels, and by labels' own."""
    plain = np.zeros(len(judged), bool)
    own = np.zeros(len(judged), bool)
    for number in range(FOLDS):
        inside = fold[judged.points] == number
        thresholds = _chosen(probabilities, judged, goal, fold != number)
        plain[inside] = probabilities[inside] >= thresholds.value
        own[inside] = probabilities[inside] >= thresholds.of(judged.labels[inside])
    return plain, own


def _chosen(probabilities: np.ndarray, judged: Judged, goal: str, rows: np.ndarray) -> Thresholds:
    """The best thresholds of some points [n] bool."""
    taken = rows[judged.points]
    some = Judged(
        judged.points[taken],
        judged.labels[taken],
        judged.scores[taken],
        judged.right[taken],
        judged.ranked,
        judged.relevance,
    )
    positives = judged.positives(rows)
    value, best = _best_of_all(probabilities[taken], some, goal, positives)
    labels, values = _best_of_labels(probabilities[taken], some, goal, positives, best)
    return Thresholds(value, labels, _shrunk(values, value, positives[labels]))


def _best_of_all(
    probabilities: np.ndarray, judged: Judged, goal: str, positives: np.ndarray
) -> tuple[float, float]:
    """The best threshold of all labels, and the micro-F1 or sum of F1 that it gives."""
    if not len(probabilities):
        return 0.5, 0.0
    order = np.argsort(-probabilities, kind="stable")
    right = judged.right[order]
    if goal == "micro_f1":
        value = 2 * np.cumsum(right) / (np.arange(1, len(order) + 1) + positives.sum())
    else:
        value = np.cumsum(_macro_gains(judged.labels[order], right, positives))
    value[~_ends(probabilities[order])] = -np.inf
    best = int(np.argmax(value))
    return float(_between(probabilities[order])[best]), float(value[best])


def _best_of_labels(
    probabilities: np.ndarray, judged: Judged, goal: str, positives: np.ndarray, best: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of labels with enough points [m] and the best threshold of each [m].

    A label's part of micro-F1 is best where 2 hits - F1 predictions is most, of which there may be
    none: that is what the whole gains by it.
    """
    asked = np.flatnonzero(positives[judged.labels] >= LABEL_POINTS)
    order = asked[np.lexsort((-probabilities[asked], judged.labels[asked]))]
    labels = judged.labels[order]
    values = probabilities[order]
    count, hits = counts_of_labels(labels, judged.right[order])
    gain = 2 * hits / (count + positives[labels]) if goal == "macro_f1" else 2 * hits - best * count
    last = np.append(labels[1:] != labels[:-1], True)[: len(labels)]  # of its label
    following = np.append(values[1:], 0.0)[: len(values)]
    halfway = (values + np.where(last, 0.0, following)) / 2
    gain = np.where(last | (following != values), gain, -np.inf)
    starts = np.flatnonzero(count == 1)
    most = np.maximum.reduceat(gain, starts) if len(starts) else np.empty(0)
    which = np.cumsum(count == 1) - 1
    _, places = np.unique(which[gain == most[which]], return_index=True)  # first best of each
    first = np.flatnonzero(gain == most[which])[places]
    none_is_better = most <= 0
    thresholds = np.where(none_is_better, (values[starts] + 1) / 2, halfway[first])
    return labels[starts], thresholds


def _shrunk(
    values: np.ndarray,
    of_all: float,
    points: np.ndarray,
) -> np.ndarray:
    """Labels' own thresholds [m], drawn toward that of all in log-odds, by their points [m]."""
    weight = points / (points + SHRINKAGE)
    log_odds = weight * _log_odds(values) + (1 - weight) * _log_odds(np.array(of_all))
    return 1 / (1 + np.exp(-log_odds))


def _log_odds(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, EDGE, 1 - EDGE)
    return np.log(values) - np.log1p(-values)
