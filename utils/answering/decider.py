"""What turns scores into decisions: probabilities, and thresholds for every goal.

    decider = fit_decider(scores, relevance, calibrated=True)     # of validation points
    decider.save(model / DECIDER)
    thresholds = Decider.load(model / DECIDER, num_labels).thresholds(config.eval)

It is saved beside a model, with the curve of what each threshold gives: so that a goal can be
chosen when there is no data any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.answering.judged import Judged
from utils.answering.score_calibration import (
    PARTS,
    ScoreCalibration,
    cross_fitted_probabilities,
    fit_calibration,
)
from utils.answering.thresholds import (
    COLUMNS,
    GOALS,
    Chosen,
    Thresholds,
    choose_thresholds,
    threshold_curve,
)
from utils.config.sections import EvalConfig
from utils.errors import InputError
from utils.metrics import expected_calibration_error, reliability
from utils.reading.arrays import read_arrays
from utils.reading.saved import Shape, check_arrays, check_ids

DECIDER = "decisions.npz"  # in model/
CURVE_POINTS = 1000  # of a saved curve, most of them where few predictions come through
BELIEVED = 20  # predictions that tell a precision, at least
BINS = 10  # of the reliability
BIN_KEYS = ("score", "right", "count")


@dataclass(frozen=True)
class Decider:
    """How likely predictions of a model are right, and from where on they count.

    Attributes:
        num_points: validation points that it was fitted on.
        calibration: of the model's scores; None of a model that says probabilities by itself.
        curve: what thresholds give on these points, as `threshold_curve` [C, 6].
        chosen: thresholds by goal.
        bins: reliability of these points' SHOWN best, each judged by a calibration fitted on other
            points: mean probability, share right and number, a row each [BINS, 3].
    """

    num_points: int
    calibration: ScoreCalibration | None
    curve: np.ndarray
    chosen: Mapping[str, Chosen]
    bins: np.ndarray

    def thresholds(self, options: EvalConfig) -> Thresholds:
        """Return the thresholds for `eval.threshold_for`.

        Raises:
            InputError: no threshold reaches the wanted precision.
        """
        if options.threshold_for == "precision":
            return Thresholds.of_all(self._threshold_of_precision(options.wanted_precision))
        thresholds = self.chosen[options.threshold_for].thresholds
        return thresholds if options.label_thresholds else Thresholds.of_all(thresholds.value)

    def _threshold_of_precision(self, wanted: float) -> float:
        """The lowest threshold whose predictions are as often right as wanted."""
        threshold, precision, _, _, _, predictions = self.curve.T
        told = predictions >= BELIEVED
        reached = np.flatnonzero(told & (precision >= wanted))
        if len(reached):
            return float(threshold[reached[-1]])
        most = float(precision[told].max(initial=0.0))
        raise InputError(
            f"eval.wanted_precision is {wanted}, but no threshold had that on the "
            f"{self.num_points} validation points; the highest was {most:.3f}"
        )

    @property
    def ece(self) -> float:
        """Expected calibration error of the validation points in percent, cross-fitted."""
        return expected_calibration_error(self.reliability)

    @property
    def reliability(self) -> dict[str, list[float]]:
        """The bins as `utils.metrics.reliability` returns them."""
        return {key: self.bins[:, place].tolist() for place, key in enumerate(BIN_KEYS)}

    # ---- saving
    def save(self, path: Path) -> None:
        """Write plain arrays, an .npz without pickles."""
        arrays: dict[str, np.ndarray] = {
            "num_points": np.array(self.num_points),
            "curve": self.curve,
            "bins": self.bins,
        }
        for goal, chosen in self.chosen.items():
            arrays[f"{goal}.value"] = np.array(chosen.thresholds.value)
            arrays[f"{goal}.labels"] = chosen.thresholds.labels
            arrays[f"{goal}.values"] = chosen.thresholds.values
            arrays[f"{goal}.held_out"] = chosen.held_out
        if self.calibration is not None:
            for name, array in self.calibration.arrays().items():
                arrays[f"score.{name}"] = array
        path.unlink(missing_ok=True)  # it may be a link to the file of another model
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, num_labels: int) -> Decider:
        """Read what `save` wrote.

        Raises:
            InputError: it is something else.
        """
        arrays = read_arrays(path)
        expected = _expected(calibrated=any(name.startswith("score.") for name in arrays))
        check_arrays(path, arrays, expected)
        _check_columns(path, arrays)
        chosen = {goal: _chosen_of(path, goal, arrays, num_labels) for goal in GOALS}
        calibration = None
        if "score.knots" in arrays:
            parts = {name: arrays[f"score.{name}"] for name in PARTS}
            calibration = ScoreCalibration.of_arrays(parts, str(path))
        return cls(int(arrays["num_points"]), calibration, arrays["curve"], chosen, arrays["bins"])


def _expected(calibrated: bool) -> dict[str, tuple[Shape, type]]:
    """Arrays of a saved decider."""
    expected: dict[str, tuple[Shape, type]] = {
        "num_points": ((), np.int64),
        "curve": ((None, len(COLUMNS)), np.float64),
        "bins": ((BINS, len(BIN_KEYS)), np.float64),
    }
    for goal in GOALS:
        expected[f"{goal}.value"] = ((), np.float64)
        expected[f"{goal}.labels"] = ((None,), np.int64)
        expected[f"{goal}.values"] = ((None,), np.float64)
        expected[f"{goal}.held_out"] = ((3,), np.float64)
    if calibrated:
        expected.update({f"score.{name}": part for name, part in PARTS.items()})
    return expected


def _check_columns(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """InputError for a curve or bins that are no fractions, or a curve that does not descend."""
    curve = arrays["curve"]
    if curve.size and not (curve.min() >= 0 and curve[:, :-1].max() <= 1):
        raise InputError(f"{path}: curve: expected fractions from 0 to 1, and counts")
    if (np.diff(curve[:, 0]) > 0).any():
        raise InputError(f"{path}: curve: expected the highest thresholds first")
    points = int(arrays["num_points"])
    if points < 1:
        raise InputError(f"{path}: num_points: expected 1 or more validation points, got {points}")
    bins = arrays["bins"]
    if bins.min() < 0 or bins[:, :2].max() > 1:
        raise InputError(f"{path}: bins: expected shares from 0 to 1 and counts of 0 or more")


def _chosen_of(
    path: Path,
    goal: str,
    arrays: Mapping[str, np.ndarray],
    num_labels: int,
) -> Chosen:
    value = float(arrays[f"{goal}.value"])
    labels = arrays[f"{goal}.labels"]
    values = arrays[f"{goal}.values"]
    if len(labels) != len(values) or (np.diff(labels) <= 0).any():
        raise InputError(f"{path}: {goal}: expected a threshold for each of ascending labels")
    check_ids(labels, num_labels, f"{path}: {goal}.labels")
    every = np.append(values, value)
    if every.min() < 0 or every.max() > 1:
        raise InputError(
            f"{path}: {goal}: expected thresholds from 0 to 1, got {every.min()} to {every.max()}"
        )
    held_out = arrays[f"{goal}.held_out"]
    if held_out.min() < 0 or held_out.max() > 1:
        raise InputError(f"{path}: {goal}.held_out: expected shares from 0 to 1")
    return Chosen(Thresholds(value, labels, values), held_out)


# -------------------------------- fitting


def fit_decider(
    scores: sp.csr_matrix, relevance: sp.csr_matrix, probabilities: np.ndarray | None = None
) -> Decider:
    """Fit on validation points.

    Args:
        scores: of their best labels by a model that was not fitted on them [n, L].
        relevance: [n, L].
        probabilities: of the stored scores, in their order [M], by a model that says them itself;
            None = the scores are calibrated.
    """
    judged = Judged.of(scores, relevance)
    calibration = None
    held_out = probabilities
    if probabilities is None:
        calibration = fit_calibration(judged)
        probabilities = calibration.of_points(judged)
        held_out = cross_fitted_probabilities(judged)
    assert held_out is not None, "of one of both"
    shown = judged.shown
    bins = reliability(held_out[shown], judged.right[shown], BINS)
    bins = bins or dict.fromkeys(BIN_KEYS, [0.0] * BINS)  # of no prediction
    curve = threshold_curve(probabilities, judged)
    return Decider(
        judged.num_points,
        calibration,
        curve[_some_of(len(curve))],
        choose_thresholds(probabilities, judged, held_out),
        np.array([bins[key] for key in BIN_KEYS], np.float64).T,
    )


def _some_of(count: int) -> np.ndarray:
    """Places of at most CURVE_POINTS of a curve, dense where its thresholds are high."""
    if count <= CURVE_POINTS:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, CURVE_POINTS).astype(np.int64)) - 1
