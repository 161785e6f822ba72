"""A learned fusion: how likely is each candidate relevant, given what every member says of it?

    fusers = fit_fusers(candidates, ["encoder", "tree"], validation, seen, choice)
    scores = fusers.fuser(candidates)      # [n, w]

Two kinds of model read the features of candidates (utils/fusing/features.py): `boosted`,
gradient-boosted trees that never fall where a feature says that a member, or more members, are
surer, and `linear`, a logistic regression. Both are calibrated on the points that they were not
fitted on (utils/fusing/fuser_fitting.py). scikit-learn fits, numba scores; saved as plain arrays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.fusing.calibration import Calibration
from utils.fusing.candidates import Candidates
from utils.fusing.features import feature_owners, features, num_features
from utils.fusing.fuser_models import MODELS, FuserModel
from utils.reading.arrays import read_arrays
from utils.reading.saved import Shape, check_arrays

POINTS_AT_ONCE = 128  # whose candidates have features at a time
OF_EVERY_FUSER: dict[str, tuple[Shape, type]] = {
    "calibration": ((2,), np.float64),
    "tail": ((), np.float64),
    "log_counts": ((None,), np.float32),
    "boost": ((None,), np.float32),
}


@dataclass(frozen=True)
class SeenLabels:
    """What is known of the labels from the points that members were trained on.

    And from no other: a validation point's own labels would tell what is asked.
    """

    log_counts: np.ndarray  # [L] float32, log(1 + points)
    inverse_propensity: np.ndarray  # [L]

    @classmethod
    def of_counts(cls, counts: np.ndarray, inverse_propensity: np.ndarray) -> SeenLabels:
        """Labels with so many points each [L]."""
        return cls(np.log1p(counts).astype(np.float32), inverse_propensity)

    def boost(self, tail: float) -> np.ndarray:
        """Factors of the labels' probabilities [L] float32."""
        return (self.inverse_propensity**tail).astype(np.float32)


@dataclass(frozen=True)
class Fuser:
    """A fitted fusion of members: a label's probability is multiplied with its boost."""

    members: tuple[str, ...]  # their names
    model: FuserModel
    calibration: Calibration  # of the model's margins
    tail: float
    log_counts: np.ndarray  # [L] log(1 + training points)
    boost: np.ndarray  # [L] inverse propensity to the power of tail

    @classmethod
    def of_labels(
        cls,
        seen: SeenLabels,
        members: Sequence[str],
        model: FuserModel,
        calibration: Calibration,
        tail: float,
    ) -> Fuser:
        """A fuser whose labels are those that were seen."""
        return cls(tuple(members), model, calibration, tail, seen.log_counts, seen.boost(tail))

    @property
    def kind(self) -> str:
        return self.model.kind

    def with_more_labels(self, count: int) -> Fuser:
        """The same over so many labels more, which have no training points."""
        rarest = float(self.boost.max(initial=1.0))
        return replace(
            self,
            log_counts=np.append(self.log_counts, np.zeros(count, np.float32)),
            boost=np.append(self.boost, np.full(count, rarest, np.float32)),
        )

    def of_points(self, seen: SeenLabels) -> Fuser:
        """The same for members that were trained on other points."""
        return replace(self, log_counts=seen.log_counts, boost=seen.boost(self.tail))

    def __call__(self, candidates: Candidates) -> np.ndarray:
        """Score the candidates: probabilities, unless the tail is boosted.

        Returns:
            [n, w] float32, -inf in empty places
        """
        scores = np.full(candidates.labels.shape, -np.inf, np.float32)
        for start in range(0, len(scores), POINTS_AT_ONCE):
            rows = slice(start, start + POINTS_AT_ONCE)
            some = candidates.of_points(rows)
            known = some.known
            log_odds = self.calibration(self.model(features(some, self.log_counts)))
            scores[rows][known] = 1 / (1 + np.exp(-log_odds)) * self.boost[some.labels[known]]
        return scores

    def probabilities(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Scores of labels, of equal shape, without the tail's factor."""
        return scores / self.boost[labels]

    def shares(self, candidates: Candidates) -> np.ndarray:
        """What each member adds to a candidate's calibrated log-odds.

        Beside that stand the members' agreement, the label's frequency and a constant.

        Returns:
            [n, w, m] float32, 0 in empty places
        """
        owner = feature_owners(len(self.members))
        shares = np.zeros((*candidates.labels.shape, len(self.members)), np.float32)
        of_margins = self.model.shares(features(candidates, self.log_counts), owner)
        shares[candidates.known] = self.calibration.slope * of_margins[:, :-1]
        return shares

    # ---- saving
    def save(self, path: Path) -> None:
        """Write plain arrays, an .npz without pickles."""
        model = {f"model.{f.name}": getattr(self.model, f.name) for f in fields(self.model)}
        np.savez(
            path,
            kind=self.kind,
            members=json.dumps(self.members),
            calibration=np.array([self.calibration.slope, self.calibration.intercept]),
            tail=self.tail,
            log_counts=self.log_counts,
            boost=self.boost,
            **model,
        )

    @classmethod
    def load(cls, path: Path) -> Fuser:
        """Read what `save` wrote.

        Raises:
            InputError: it is something else.
        """
        kind, members = _kind_and_members(path)
        model_class = MODELS[kind]
        expected = dict(OF_EVERY_FUSER)
        for name, part in model_class.PARTS.items():
            expected[f"model.{name}"] = part
        arrays = read_arrays(path, set(expected))
        check_arrays(path, arrays, expected)
        model = model_class(**{name: arrays[f"model.{name}"] for name in model_class.PARTS})
        fuser = cls(
            members,
            model,
            Calibration(*arrays["calibration"].tolist()),
            float(arrays["tail"]),
            arrays["log_counts"],
            arrays["boost"],
        )
        try:
            model.check(num_features(len(members)))
            if fuser.log_counts.shape != fuser.boost.shape:
                raise InputError("expected a frequency and a factor for each label")
        except ValueError as error:
            raise InputError(f"{path}: not a saved fuser ({error})") from error
        return fuser


def _kind_and_members(path: Path) -> tuple[str, tuple[str, ...]]:
    """The words of a saved fuser: its kind, and its members' names as a JSON list."""
    words = read_arrays(path, ("kind", "members"), kinds="U")
    if words["kind"].shape or str(words["kind"]) not in MODELS:
        raise InputError(
            f"{path}: kind: expected {' or '.join(MODELS)}, got {str(words['kind'])[:60]!r}"
        )
    try:
        members = json.loads(str(words["members"]))
    except (ValueError, RecursionError):
        members = None
    if (
        not isinstance(members, list)
        or not members
        or not all(isinstance(name, str) for name in members)
    ):
        raise InputError(
            f"{path}: members: expected a list of names, got {str(words['members'])[:60]!r}"
        )
    return str(words["kind"]), tuple(members)
