"""Scores of any method -> probabilities, by what validation points say of them.

    calibration = fit_calibration(judged)
    calibration(scores, ranked)     # [n, c] and [n, CONTEXT] -> [n, c]

First Platt's logistic regression (1999) of three things: a prediction's score s; the best score b
of its text; and how many rivals there are, r = log sum exp(t (s' - b)) over the text's CONTEXT best
scores s', with t the weight of s beside b alone. So a model that was trained by a softmax may be
judged by its softmax, and one whose scores are probabilities by these: b and r take part where that
fits better, and of scores within [0, 1] their log-odds in place of them. Then a monotone curve over
what the regression says: isotonic regression (Zadrozny and Elkan, 2002), drawn toward the logistic
one where few predictions speak, and linear between the means of its steps, so that it does not make
unequal scores equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from utils.answering.judged import CONTEXT, Judged
from utils.errors import InputError
from utils.fusing.calibration import FLATTEST, logistic, platt, platt_targets
from utils.fusing.cross_fitting import CandidateRows, Model
from utils.reading.saved import Shape

PARTS: dict[str, tuple[Shape, type]] = {  # of a saved calibration
    "is_logit": ((), np.int64),
    "sharpness": ((), np.float64),
    "weights": ((3,), np.float64),
    "intercept": ((), np.float64),
    "limits": ((2, 2), np.float64),
    "knots": ((None, 2), np.float64),
}
LEAST = 1e-9  # of a score whose log-odds are taken
MOST = 1 - 1e-6
LARGEST = 700.0  # of an exponent
REGRESSED = 20_000  # predictions that tell the logistic regression's numbers
PRIOR = 10  # predictions that the logistic regression counts as in each step of the curve


@dataclass(frozen=True)
class ScoreCalibration:
    """Log-odds weights . (s, b, r) + intercept, then a curve.

    Attributes:
        is_logit: log-odds of scores take part, not these themselves.
        sharpness: t, of the rivals.
        weights: of s, b and r [3].
        intercept: of the regression.
        limits: smallest and largest b and r that were seen [2, 2]: others count as these.
        knots: of the curve [K, 2], regressed and calibrated log-odds, both rising; none = no curve.
    """

    is_logit: bool
    sharpness: float
    weights: np.ndarray
    intercept: float
    limits: np.ndarray
    knots: np.ndarray

    def __call__(self, scores: np.ndarray, ranked: np.ndarray) -> np.ndarray:
        """Return how likely predictions are right, never falling where the score of a text rises.

        Args:
            scores: of predictions [n, c]; -inf = none, whose probability is about 0.
            ranked: scores of the best labels of each text [n, w], best first, -inf = no more:
                CONTEXT of them or more, or all that there are.
        """
        best, rivals = self._context(ranked)
        scores = _scaled(scores, self.is_logit)
        log_odds = self._curved(self._margins(scores, best[:, None], rivals[:, None]))
        return np.where(np.isneginf(scores), 0.0, _sigmoid(log_odds))

    def of_points(self, judged: Judged) -> np.ndarray:
        """Return how likely the predictions of some points are right [M]."""
        return _of_points(self, judged.scores, judged.points, judged.ranked)

    def _context(self, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The b and r of each text [n]."""
        ranked = _scaled(ranked[:, :CONTEXT], self.is_logit)
        best = np.where(np.isneginf(ranked[:, 0]), 0.0, ranked[:, 0])
        gaps = np.clip(self.sharpness * (ranked - best[:, None]), -LARGEST, 0)
        rivals = np.log(np.maximum(np.exp(gaps).sum(1), 1.0))
        return np.clip(best, *self.limits[0]), np.clip(rivals, *self.limits[1])

    def _margins(
        self,
        scores: np.ndarray,
        best: np.ndarray,
        rivals: np.ndarray,
    ) -> np.ndarray:
        """Regressed log-odds."""
        of_score, of_best, of_rivals = self.weights
        return of_score * scores + (of_best * best + of_rivals * rivals + self.intercept)

    def _curved(self, margins: np.ndarray) -> np.ndarray:
        """Look the curve up: level above its last knot, parallel to the margins below its first."""
        if not len(self.knots):
            return margins
        at, value = self.knots.T
        below = np.minimum(margins - at[0], 0)
        return np.interp(margins, at, value) + below

    # ---- saving
    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved, by the names of PARTS."""
        return {
            "is_logit": np.array(int(self.is_logit)),
            "sharpness": np.array(self.sharpness),
            "weights": self.weights,
            "intercept": np.array(self.intercept),
            "limits": self.limits,
            "knots": self.knots,
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], where: str) -> ScoreCalibration:
        """Rebuild from arrays whose names, shapes and kinds were checked.

        Raises:
            InputError: they are no calibration.
        """
        knots = arrays["knots"]
        is_logit = int(arrays["is_logit"])
        if is_logit not in (0, 1):
            raise InputError(f"{where}: is_logit: expected 0 or 1, got {is_logit}")
        if (np.diff(knots[:, 0]) <= 0).any() or (np.diff(knots[:, 1]) < 0).any():
            raise InputError(f"{where}: knots: expected a curve that rises")
        if arrays["weights"][0] <= 0 or arrays["sharpness"] < 0:
            raise InputError(
                f"{where}: expected a weight of scores above 0 and a sharpness of 0 or more, got "
                f"{arrays['weights'][0]} and {arrays['sharpness']}"
            )
        if (arrays["limits"][:, 0] > arrays["limits"][:, 1]).any():
            raise InputError(f"{where}: limits: expected the smaller ones first")
        return cls(
            bool(is_logit),
            float(arrays["sharpness"]),
            arrays["weights"],
            float(arrays["intercept"]),
            arrays["limits"],
            knots,
        )


# -------------------------------- fitting


def fit_calibration(judged: Judged) -> ScoreCalibration:
    """Fit on the predictions of points that the scores were not fitted on."""
    return _fit(judged.scores, judged.points, judged.right, judged.ranked)


def cross_fitted_probabilities(judged: Judged) -> np.ndarray:
    """Probabilities [M] of predictions, each by a calibration fitted on other points."""
    if judged.num_points < 2:
        return fit_calibration(judged).of_points(judged)
    features = np.stack([judged.scores, judged.points], 1)

    def fit(features: np.ndarray, right: np.ndarray) -> Model:
        points = features[:, 1].astype(np.int64)
        calibration = _fit(features[:, 0], points, right, judged.ranked)
        return lambda others: _of_points(
            calibration, others[:, 0], others[:, 1].astype(np.int64), judged.ranked
        )

    rows = CandidateRows(features, judged.right, judged.points, judged.num_points)
    return rows.cross_fitted(fit)


def _of_points(
    calibration: ScoreCalibration, scores: np.ndarray, points: np.ndarray, ranked: np.ndarray
) -> np.ndarray:
    """Probabilities of scores [M] of some points [M], whose best scores are ranked [n, CONTEXT]."""
    margins = _margins_of_points(calibration, scores, points, ranked)
    return _sigmoid(calibration._curved(margins))


def _margins_of_points(
    calibration: ScoreCalibration, scores: np.ndarray, points: np.ndarray, ranked: np.ndarray
) -> np.ndarray:
    """Regressed log-odds, as `_of_points`."""
    best, rivals = calibration._context(ranked)
    scaled = _scaled(scores, calibration.is_logit)
    return calibration._margins(scaled, best[points], rivals[points])


def _fit(
    scores: np.ndarray, points: np.ndarray, right: np.ndarray, ranked: np.ndarray
) -> ScoreCalibration:
    """Fit on scores [M] of some points [M], of which some are right [M] bool."""
    some = np.arange(len(scores))
    if len(some) > REGRESSED:
        some = np.sort(np.random.default_rng(0).choice(len(some), REGRESSED, replace=False))
    chosen = (scores[some], points[some], right[some], ranked)
    found = _regressed(*chosen, is_logit=False)
    if len(scores) and scores.min() >= 0 and scores.max() <= 1:
        found += _regressed(*chosen, is_logit=True)
    best = min(found, key=lambda calibration: _loss(_curved(calibration, *chosen), *chosen))
    return _curved(best, scores, points, right, ranked)


def _curved(
    calibration: ScoreCalibration,
    scores: np.ndarray,
    points: np.ndarray,
    right: np.ndarray,
    ranked: np.ndarray,
) -> ScoreCalibration:
    """The calibration with a curve, and the limits of what was seen."""
    calibration = replace(calibration, limits=_limits(calibration, points, ranked))
    if right.all() or not right.any():
        return calibration  # nothing that a curve could add
    margins = _margins_of_points(calibration, scores, points, ranked)
    return replace(calibration, knots=_curve(margins, right))


def _loss(
    calibration: ScoreCalibration,
    scores: np.ndarray,
    points: np.ndarray,
    right: np.ndarray,
    ranked: np.ndarray,
) -> float:
    """Mean logarithmic loss; 0 of no prediction."""
    probability = np.clip(_of_points(calibration, scores, points, ranked), LEAST, 1 - LEAST)
    return float(-np.log(np.where(right, probability, 1 - probability)).sum() / max(len(right), 1))


def _regressed(
    scores: np.ndarray,
    points: np.ndarray,
    right: np.ndarray,
    ranked: np.ndarray,
    is_logit: bool,
) -> list[ScoreCalibration]:
    """Platt's regression by s alone, by s and b, and by all three.

    Those are left out that would turn the order of a text's labels.
    """
    scaled = _scaled(scores, is_logit)
    alone = platt(scaled, right)
    every = np.array([[-np.inf, np.inf], [-np.inf, np.inf]])
    weights = np.array([alone.slope, 0.0, 0.0])
    found = [
        ScoreCalibration(is_logit, alone.slope, weights, alone.intercept, every, np.empty((0, 2)))
    ]
    if right.all() or not right.any():
        return found
    for columns in (2, 3):  # what s weighs beside b is the sharpness of r
        best, rivals = found[-1]._context(ranked)
        x = np.stack([scaled, best[points], rivals[points]], 1)[:, :columns]
        more = _regression(found[-1], x, right)
        if more.weights[0] <= 0:
            break
        found.append(more)
    return found


def _regression(
    before: ScoreCalibration,
    x: np.ndarray,
    right: np.ndarray,
) -> ScoreCalibration:
    """The calibration whose regression has the columns x [M, 2 or 3] in place of fewer."""
    columns = x.shape[1]
    mean = x.mean(0)
    spread = x.std(0)
    spread[spread == 0] = 1
    slopes, start = logistic((x - mean) / spread, platt_targets(right))
    weights = np.zeros(3)
    if slopes[0] >= FLATTEST:
        weights[:columns] = slopes / spread
    intercept = float(start - weights[:columns] @ mean)
    sharpness = float(weights[0]) if columns == 2 else before.sharpness
    return replace(before, weights=weights, intercept=intercept, sharpness=sharpness)


def _limits(
    found: ScoreCalibration,
    points: np.ndarray,
    ranked: np.ndarray,
) -> np.ndarray:
    """Smallest and largest b and r of some points [2, 2]."""
    context = np.stack(found._context(ranked[np.unique(points)]))
    if not context.size:
        return np.zeros((2, 2))
    return np.stack([context.min(1), context.max(1)], 1)


def _curve(margins: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Knots [K, 2] of the monotone curve from margins to log-odds [M]."""
    from sklearn.isotonic import isotonic_regression

    at, which, count = np.unique(margins, return_inverse=True, return_counts=True)
    hits = np.bincount(which, right)
    level = isotonic_regression(hits / count, sample_weight=count)
    step = np.concatenate([[0], np.cumsum(np.diff(level) != 0)])  # which one each margin is of
    counts = np.bincount(step, count)
    centers = np.bincount(step, count * at) / counts
    expected = np.bincount(step, count * _sigmoid(at)) / counts
    share = (np.bincount(step, hits) + PRIOR * expected) / (counts + PRIOR)
    share = np.clip(np.maximum.accumulate(share), LEAST, 1 - LEAST)
    return np.stack([centers, np.log(share / (1 - share))], 1)


def _scaled(values: np.ndarray, is_logit: bool) -> np.ndarray:
    """What is weighed: values as they are, or their log-odds; -inf stays."""
    values = np.asarray(values, np.float64)
    if not is_logit:
        return values
    inside = np.clip(values, LEAST, MOST)
    return np.where(np.isneginf(values), values, np.log(inside) - np.log1p(-inside))


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(log_odds, -LARGEST, LARGEST)))
