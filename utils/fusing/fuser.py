"""A learned fusion: how likely is each candidate relevant, given what every member says of it?

    found = Candidates(*merge(proposals, num_labels), scores, k)      # utils/fusing/candidates.py
    _, calibration = cross_fit(found, relevance, seen.log_counts, "boosted", settings)
    fuser = fit(found, relevance, seen, "boosted", ["encoder", "tree"], settings, calibration,
        tail=0.0)
    probability = fuser(found)      # [n, w]

Two kinds of fuser read the features of candidates.py: `boosted`, gradient-boosted trees that never
fall where a feature says that a member, or more members, are surer, and `linear`, a logistic
regression. Both are calibrated on the points that they were not fitted on. scikit-learn fits, numba
scores; saved as plain arrays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.fusing.candidates import Candidates
from utils.fusing.features import feature_owners, features, num_features
from utils.fusing.fuser_models import MODELS, Boosted, Linear
from utils.reading.matrices import read_arrays
from utils.reading.saved import Shape, check_arrays

OF_EVERY_FUSER: dict[str, tuple[Shape, type]] = {
    "calibration": ((2,), np.float64),
    "tail": ((), np.float64),
    "log_counts": ((None,), np.float32),
    "boost": ((None,), np.float32),
}


@dataclass(frozen=True)
class SeenLabels:
    """What is known of the labels from the points that members were trained on, and from no other:
    a validation point's own labels would tell what is asked. log_counts [L], log(1 + points);
    inverse_propensity [L]."""

    log_counts: np.ndarray
    inverse_propensity: np.ndarray

    def boost(self, tail: float) -> np.ndarray:
        """Factors of the labels' probabilities [L]."""
        return (self.inverse_propensity**tail).astype(np.float32)


@dataclass(frozen=True)
class Fuser:
    """A fitted fusion. Attributes: kind; members; model; calibration (a, b): p = sigmoid(a model +
    b); tail, the power of a label's inverse propensity that its probability is multiplied with;
    labels, log frequency and that factor."""

    kind: str
    members: tuple[str, ...]
    model: Linear | Boosted
    calibration: np.ndarray
    tail: float
    log_counts: np.ndarray  # [L] log(1 + training points)
    boost: np.ndarray  # [L] inverse propensity to the power of tail

    def of_points(self, seen: SeenLabels) -> Fuser:
        """The same for members that were trained on other points."""
        return replace(self, log_counts=seen.log_counts, boost=seen.boost(self.tail))

    def __call__(self, found: Candidates) -> np.ndarray:
        """Scores [n, w] float32, -inf in empty places: probabilities, unless the tail is
        boosted."""
        out = np.full(found.labels.shape, -np.inf, np.float32)
        margins = (
            self.calibration[0] * self.model(features(found, self.log_counts)) + self.calibration[1]
        )
        out[found.known] = 1 / (1 + np.exp(-margins)) * self.boost[found.labels[found.known]]
        return out

    def probabilities(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Scores of labels, of equal shape, without the tail's factor."""
        return scores / self.boost[labels]

    def shares(self, found: Candidates) -> np.ndarray:
        """What each member adds to a candidate's calibrated log-odds, beside their agreement, the
        label's frequency and a constant: [n, w, m] float32, 0 in empty places."""
        owner = feature_owners(len(self.members))
        out = np.zeros((*found.labels.shape, len(self.members)), np.float32)
        out[found.known] = (
            self.calibration[0] * self.model.shares(features(found, self.log_counts), owner)[:, :-1]
        )
        return out

    # ---- saving
    def save(self, path: Path) -> None:
        """Plain arrays, an .npz without pickles."""
        np.savez(
            path,
            kind=self.kind,
            members=json.dumps(self.members),
            calibration=self.calibration,
            tail=self.tail,
            log_counts=self.log_counts,
            boost=self.boost,
            **{f"model.{f.name}": getattr(self.model, f.name) for f in fields(self.model)},
        )

    @classmethod
    def load(cls, path: Path) -> Fuser:
        """What `save` wrote; ValueError if it is something else."""
        kind, members = _kind_and_members(path)
        parts = {f"model.{name}": expected for name, expected in MODELS[kind].PARTS.items()}
        arrays = read_arrays(path, {*OF_EVERY_FUSER, *parts})
        check_arrays(path, arrays, {**OF_EVERY_FUSER, **parts})
        model = MODELS[kind](**{f.name: arrays[f"model.{f.name}"] for f in fields(MODELS[kind])})
        fuser = cls(
            kind,
            members,
            model,
            arrays["calibration"],
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
