"""What turns a fuser's margins into probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLATTEST = 0.1  # slope of a calibration, of margins in units of their standard deviation


@dataclass(frozen=True)
class Calibration:
    """Log-odds slope * margin + intercept of a model's margins."""

    slope: float
    intercept: float

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        return self.slope * margins + self.intercept


def platt(margins: np.ndarray, relevant: np.ndarray) -> Calibration:
    """Fit log-odds whose sigmoid is the share of relevant candidates (Platt, 1999).

    The targets are his, (right + 1) / (right + 2) and 1 / (wrong + 2): where all candidates are
    right, or all wrong, the next one is not certain to be. The slope is kept above 0, so that the
    order never turns around.

    Args:
        margins: [M], of models that were fitted on other points. relevant: [M] bool.
    """
    right = int(relevant.sum())
    wrong = len(relevant) - right
    if right + wrong == 0:
        return Calibration(1.0, 0.0)
    target = platt_targets(relevant)
    center = margins.mean()
    spread = margins.std() or 1.0
    slope = 0.0
    intercept = 0.0
    if right and wrong:
        slopes, intercept = logistic(((margins - center) / spread)[:, None], target)
        slope = slopes[0]
    if slope < FLATTEST:
        share = target.mean()
        slope = FLATTEST
        intercept = np.log(share / (1 - share))
    slope /= spread
    return Calibration(float(slope), float(intercept - slope * center))


def platt_targets(relevant: np.ndarray) -> np.ndarray:
    """Platt's targets [M] of candidates that are relevant or not [M] bool, within (0, 1)."""
    right = int(relevant.sum())
    wrong = len(relevant) - right
    return np.where(relevant, (right + 1) / (right + 2), 1 / (wrong + 2))


def logistic(x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes [F] and intercept of a logistic regression of x [M, F] on targets [M] in (0, 1)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6, solver="newton-cholesky").fit(
        np.concatenate([x, x]),
        np.repeat([1, 0], len(target)),
        np.concatenate([target, 1 - target]),
    )
    return model.coef_[0], model.intercept_[0]
