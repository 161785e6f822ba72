"""Fitting a fuser on validation points: its kind and its tail are chosen by cross-fitting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils import metrics
from utils.fusing.calibration import Calibration, platt
from utils.fusing.candidates import Candidates, relevant_places
from utils.fusing.cross_fitting import FOLDS, CandidateRows
from utils.fusing.features import features
from utils.fusing.fuser import Fuser, SeenLabels
from utils.fusing.fuser_models import TreeLimits, fit_model
from utils.fusing.validation import Validation, warn_if_alike

log = logging.getLogger(__name__)
TAILS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
FOLDS_WITHOUT = 2  # for the calibration of a fuser without one of the members


@dataclass(frozen=True)
class FuserChoice:
    """What a fuser is chosen from: kinds of model, trees' limits; and the metric that it is for."""

    kinds: Sequence[str]
    limits: TreeLimits
    target: str


@dataclass(frozen=True)
class FittedFusers:
    """A fuser of all members, for each member one of the others, and what cross-fitting says.

    Attributes:
        crossed: cross-fitted scores of the validation points [n, L]; None of fusers not fitted now.
    """

    fuser: Fuser
    without: dict[str, Fuser]
    checked: dict[str, Any]
    crossed: sp.csr_matrix | None = None

    def with_more_labels(self, count: int) -> FittedFusers:
        """The same over so many labels more, which have no training points."""
        without = {name: fuser.with_more_labels(count) for name, fuser in self.without.items()}
        return FittedFusers(self.fuser.with_more_labels(count), without, self.checked)

    def of_points(self, seen: SeenLabels) -> FittedFusers:
        """The same for members that were trained on other points."""
        without = {name: fuser.of_points(seen) for name, fuser in self.without.items()}
        return FittedFusers(self.fuser.of_points(seen), without, self.checked)


def candidate_rows(
    candidates: Candidates, relevance: sp.csr_matrix, log_counts: np.ndarray
) -> CandidateRows:
    """The features of the candidates of validation points [n], whose relevance is [n, L]."""
    num_points = len(candidates.labels)
    return CandidateRows(
        features(candidates, log_counts),
        relevant_places(candidates, relevance),
        np.repeat(np.arange(num_points), candidates.known.sum(1)),
        num_points,
    )


@dataclass(frozen=True)
class CrossFit:
    """What models of one kind, each fitted on the points of other folds, say of the candidates."""

    kind: str
    log_odds: np.ndarray  # [candidates], calibrated
    calibration: Calibration  # fitted on all of them


def cross_fit(
    rows: CandidateRows,
    kind: str,
    limits: TreeLimits,
    folds: int = FOLDS,
) -> CrossFit:
    """Judge and calibrate all candidates by models that were fitted on other points."""
    margins = rows.cross_fitted(partial(fit_model, kind, limits), folds)
    calibration = platt(margins, rows.relevant)
    return CrossFit(kind, calibration(margins), calibration)


def fit_fusers(
    candidates: Candidates,
    members: Sequence[str],
    validation: Validation,
    seen: SeenLabels,
    choice: FuserChoice,
) -> FittedFusers:
    """Fit the fuser of all members, and for each of several members one of the others.

    Args:
        candidates: of the validation points, their filter pairs removed.
        members: names, in the order of `candidates.scores`.
    """
    rows = candidate_rows(candidates, validation.relevance, seen.log_counts)
    warn_if_alike(rows.relevant)
    crossed, tail = _best(candidates, rows, validation, seen, choice)
    model = fit_model(crossed.kind, choice.limits, rows.features, rows.relevant)
    fuser = Fuser.of_labels(seen, members, model, crossed.calibration, tail)
    without = {}
    for place, name in enumerate(members if len(members) > 1 else ()):
        others = [other for other in members if other != name]
        left = candidate_rows(candidates.without(place), validation.relevance, seen.log_counts)
        calibration = cross_fit(left, crossed.kind, choice.limits, FOLDS_WITHOUT).calibration
        model = fit_model(crossed.kind, choice.limits, left.features, left.relevant)
        without[name] = Fuser.of_labels(seen, others, model, calibration, tail)
    scored = _member_scores(candidates, members, validation.num_labels)
    scored["fused, cross-fitted"] = _fused_scores(candidates, crossed, seen.boost(tail))
    checked: dict[str, Any] = {**validation.report(scored)}
    checked["reliability"] = metrics.reliability(_sigmoid(crossed.log_odds), rows.relevant)
    return FittedFusers(fuser, without, checked, scored["fused, cross-fitted"])


def _best(
    candidates: Candidates,
    rows: CandidateRows,
    validation: Validation,
    seen: SeenLabels,
    choice: FuserChoice,
) -> tuple[CrossFit, float]:
    """The kind of model, cross-fitted, and the tail whose scores have the best `choice.target`."""
    crossed_fits = [cross_fit(rows, kind, choice.limits) for kind in choice.kinds]
    tried = []
    for crossed in crossed_fits:
        for tail in TAILS:
            scores = _fused_scores(candidates, crossed, seen.boost(tail))
            value = validation.evaluate(scores)[choice.target]
            log.info(
                "%s fuser, tail %g: cross-fitted %s %.2f", crossed.kind, tail, choice.target, value
            )
            tried.append((value, crossed, tail))
    _, crossed, tail = max(tried, key=itemgetter(0))  # of equal ones the first
    return crossed, tail


def _fused_scores(
    candidates: Candidates,
    crossed: CrossFit,
    boost: np.ndarray,
) -> sp.csr_matrix:
    """Cross-fitted scores [n, L], the labels' probabilities multiplied by `boost` [L]."""
    labels = candidates.labels[candidates.known]
    return candidates.as_csr(boost[labels] / (1 + np.exp(-crossed.log_odds)), len(boost))


def _member_scores(
    candidates: Candidates, members: Sequence[str], num_labels: int
) -> dict[str, sp.csr_matrix]:
    """Each member's own scores of all candidates [n, L]."""
    scores = candidates.scores[candidates.known]  # [candidates, m]
    return {
        name: candidates.as_csr(scores[:, place], num_labels) for place, name in enumerate(members)
    }


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))
