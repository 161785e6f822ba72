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
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from numba import njit

from utils.errors import InputError
from utils.fusing.candidates import (
    OPTIONS,
    PER_MEMBER,
    Candidates,
    feature_owners,
    features,
    num_features,
    relevant_places,
    rising_features,
)
from utils.reading.matrices import read_arrays
from utils.reading.saved import Shape, check_arrays

KINDS = ("linear", "boosted")
FOLDS = 5
SCALED = 50_000  # rows that say how features are scaled
FLATTEST = 0.1  # slope of a calibration, of margins in units of their standard deviation
# of a row; features such as the mean of ranks are sums of others: float32 could not tell them apart
RIDGE = 1e-5


@njit(**OPTIONS)
def _boosted(x, roots, feature, threshold, left, right, value, start, out):
    for i in range(len(x)):
        total = start
        for tree in range(len(roots)):
            node = roots[tree]
            while feature[node] >= 0:
                node = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
            total += value[node]
        out[i] = total


@njit(**OPTIONS)
def _shares(x, roots, feature, threshold, left, right, value, owner, out):
    """What each owner of features adds on the way from the root to the leaf (Saabas): out [n,
    owners]."""
    for i in range(len(x)):
        for tree in range(len(roots)):
            node = roots[tree]
            while feature[node] >= 0:
                child = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
                out[i, owner[feature[node]]] += value[child] - value[node]
                node = child


@dataclass(frozen=True)
class Boosted:
    """Boosted trees as arrays over the nodes of all of them; a leaf has feature -1."""

    roots: np.ndarray  # [trees] int64
    feature: np.ndarray  # [nodes] int64
    threshold: np.ndarray  # [nodes] float64: to the left where the feature is at most this
    left: np.ndarray  # [nodes] int64
    right: np.ndarray  # [nodes] int64
    # [nodes] float64, of inner nodes what a leaf in their place would say
    value: np.ndarray
    start: np.ndarray  # [] float64
    PARTS: ClassVar[dict[str, tuple[Shape, type]]] = {
        "roots": ((None,), np.int64),
        "feature": ((None,), np.int64),
        "threshold": ((None,), np.float64),
        "left": ((None,), np.int64),
        "right": ((None,), np.int64),
        "value": ((None,), np.float64),
        "start": ((), np.float64),
    }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = np.empty(len(x))
        _boosted(
            x,
            self.roots,
            self.feature,
            self.threshold,
            self.left,
            self.right,
            self.value,
            float(self.start),
            out,
        )
        return out

    def shares(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        out = np.zeros((len(x), int(owner.max()) + 1))
        _shares(
            x,
            self.roots,
            self.feature,
            self.threshold,
            self.left,
            self.right,
            self.value,
            owner,
            out,
        )
        return out

    def check(self, columns: int) -> None:
        """ValueError unless every walk ends: children come after their parents."""
        nodes = len(self.feature)
        inner = self.feature >= 0
        # one leaf more than inner nodes
        if not len(self.roots) or nodes - 2 * int(inner.sum()) != len(self.roots):
            raise InputError(f"expected whole trees, got {len(self.roots)} roots and {nodes} nodes")
        children = np.stack([self.left, self.right])[:, inner]
        if (
            any(a.shape != (nodes,) for a in (self.threshold, self.left, self.right, self.value))
            or (self.roots < 0).any()
            or (self.roots >= nodes).any()
            or (children >= nodes).any()
            or (children <= np.flatnonzero(inner)).any()
            or (self.feature >= columns).any()
        ):
            raise ValueError(
                f"expected trees whose children come after their parents, over {columns} features"
            )

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        relevant: np.ndarray,
        members: int,
        trees: int,
        leaves: int,
        min_leaf: int,
    ) -> Boosted:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        model = HistGradientBoostingClassifier(
            max_iter=trees,
            max_leaf_nodes=leaves,
            learning_rate=0.1,
            min_samples_leaf=min_leaf,
            l2_regularization=1.0,
            monotonic_cst=rising_features(members),
            early_stopping=False,
            random_state=0,
        )
        # its threads wait for each other: on a busy machine that takes a minute
        with threadpool_limits(1):
            model.fit(x, relevant)
        # its only door to the trees; tested for equality
        nodes = [part[0].nodes for part in model._predictors]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in nodes])]).astype(np.int64)
        leaf = np.concatenate([part["is_leaf"] for part in nodes]).astype(bool)
        base = np.repeat(offsets[:-1], np.diff(offsets))
        joined = {
            name: np.concatenate([part[name] for part in nodes])
            for name in ("feature_idx", "num_threshold", "left", "right", "value")
        }
        return cls(
            offsets[:-1],
            np.where(leaf, -1, joined["feature_idx"]).astype(np.int64),
            joined["num_threshold"],
            joined["left"].astype(np.int64) + base,
            joined["right"].astype(np.int64) + base,
            joined["value"],
            np.asarray(model._baseline_prediction.ravel()[0], np.float64),
        )


@dataclass(frozen=True)
class Linear:
    """A logistic regression: weight [F], intercept []."""

    weight: np.ndarray
    intercept: np.ndarray
    PARTS: ClassVar[dict[str, tuple[Shape, type]]] = {
        "weight": ((None,), np.float64),
        "intercept": ((), np.float64),
    }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight + float(self.intercept)

    def shares(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        return (x * self.weight) @ np.eye(int(owner.max()) + 1)[owner]

    def check(self, columns: int) -> None:
        if self.weight.shape != (columns,):
            raise ValueError(f"expected weights [{columns}], got {self.weight.shape}")

    @classmethod
    def fit(cls, x: np.ndarray, relevant: np.ndarray, *_: int) -> Linear:
        from sklearn.linear_model import LogisticRegression

        some = x[:: max(len(x) // SCALED, 1)].astype(np.float64)  # only conditions the problem
        mean = some.mean(0)
        scale = some.std(0)
        scale[scale == 0] = 1
        scaled = (x - mean.astype(np.float32)) / scale.astype(np.float32)
        # BLAS may raise the flag over finite arrays (numpy/numpy#24067): what counts is whether the
        # result is finite
        with np.errstate(invalid="ignore"):
            model = LogisticRegression(C=1 / (RIDGE * len(x)), solver="newton-cholesky").fit(
                scaled, relevant
            )
        if not np.isfinite(model.coef_).all():
            raise FloatingPointError(
                "the linear fuser did not converge: its weights are not finite"
            )
        weight = model.coef_[0] / scale
        return cls(weight.astype(np.float64), np.asarray(model.intercept_[0] - weight @ mean))


MODELS = {"linear": Linear, "boosted": Boosted}


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


OF_EVERY_FUSER: dict[str, tuple[Shape, type]] = {
    "calibration": ((2,), np.float64),
    "tail": ((), np.float64),
    "log_counts": ((None,), np.float32),
    "boost": ((None,), np.float32),
}


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


# -------------------------------- fitting


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
