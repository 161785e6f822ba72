"""Fitting and calibrating a fuser on validation points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from utils.fusing.candidates import Candidates, relevant_places
from utils.fusing.features import features
from utils.fusing.fuser import Fuser, SeenLabels
from utils.fusing.fuser_models import MODELS, Boosted, Linear
from utils.fusing.kernels import PER_MEMBER

FOLDS = 5
FLATTEST = 0.1  # slope of a calibration, of margins in units of their standard deviation


@dataclass(frozen=True)
class FuserSettings:
    """What fitting may do: trees, leaves and min_leaf of the boosted kind."""

    trees: int
    leaves: int
    min_leaf: int


def cross_fit(
    found: Candidates,
    relevance: sp.csr_matrix,
    log_counts: np.ndarray,
    kind: str,
    settings: FuserSettings,
    folds: int = FOLDS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(log-odds of all known candidates [candidates], each by a model fitted on the other folds'
    points and calibrated on all; the calibration [2])."""
    n = len(found.labels)
    x = features(found, log_counts)
    relevant = relevant_places(found, relevance)
    fold = np.random.default_rng(seed).permutation(n) % min(folds, n)
    of_row = np.repeat(fold, found.known.sum(1))
    margins = np.empty(len(x))
    for number in range(min(folds, n)):
        inside = of_row == number
        model = _fit_model(kind, x[~inside], relevant[~inside], found.scores.shape[2], settings)
        margins[inside] = model(x[inside])
    calibration = _platt(margins, relevant)
    return calibration[0] * margins + calibration[1], calibration


def _fit_model(
    kind: str,
    x: np.ndarray,
    relevant: np.ndarray,
    members: int,
    settings: FuserSettings,
) -> Linear | Boosted:
    # nothing to learn from: how near a label is to each member's best
    if relevant.all() or not relevant.any():
        weight = np.zeros(x.shape[1])
        weight[1 : PER_MEMBER * members : PER_MEMBER] = 1.0
        return Linear(weight, np.asarray(0.0))
    return MODELS[kind].fit(
        x, relevant, members, settings.trees, settings.leaves, settings.min_leaf
    )


def _platt(margins: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(a, b) with which sigmoid(a margin + b) is the share of relevant candidates (Platt, 1999).

    The targets are his, (right + 1) / (right + 2) and 1 / (wrong + 2): where all candidates are
    right, or all wrong, the next one is not certain to be. The slope is kept above 0, so that the
    order never turns around.
    """
    from sklearn.linear_model import LogisticRegression

    right = int(relevant.sum())
    wrong = len(relevant) - right
    if right + wrong == 0:
        return np.array([1.0, 0.0])
    target = np.where(relevant, (right + 1) / (right + 2), 1 / (wrong + 2))
    center = margins.mean()
    spread = margins.std() or 1.0
    slope = 0.0
    if right and wrong:
        standard = (margins - center) / spread
        platt = LogisticRegression(C=1e6, solver="newton-cholesky").fit(
            np.tile(standard, 2)[:, None],
            np.repeat([1, 0], len(target)),
            np.concatenate([target, 1 - target]),
        )
        slope, intercept = platt.coef_[0, 0], platt.intercept_[0]
    if slope < FLATTEST:
        share = target.mean()
        slope = FLATTEST
        intercept = np.log(share / (1 - share))
    slope /= spread
    return np.array([slope, intercept - slope * center])


def fit(
    found: Candidates,
    relevance: sp.csr_matrix,
    seen: SeenLabels,
    kind: str,
    members: Sequence[str],
    settings: FuserSettings,
    calibration: np.ndarray,
    tail: float,
) -> Fuser:
    """Fit on all points.

    Args:
        found: candidates of validation points, filter pairs removed. relevance: [n, L], relevant
        where stored.
        calibration: of `cross_fit` with the same kind and settings. tail: power of the inverse
        propensity.
    """
    relevant = relevant_places(found, relevance)
    model = _fit_model(kind, features(found, seen.log_counts), relevant, len(members), settings)
    kind = next(name for name, kind in MODELS.items() if isinstance(model, kind))
    return Fuser(kind, tuple(members), model, calibration, tail, seen.log_counts, seen.boost(tail))
