"""A decision tree over several models' scores of the same candidates, added to those scores.

    final = tree_weight * tree(member scores, label statistics) + sum_m member_weights[m] * score_m

DEXA (Dahiya et al., KDD 2023): members (classifier, embedding), statistic inverse propensity, depth
7, tree_weight beta, weights (1, beta). ELIAS++ (Gupta et al., NeurIPS 2022): members (ranker,
index), statistic label frequency, depth 5, tree_weight 0.3, weights (0.7, 0).

    scored = ScoredCandidates.of([classifier, embedding], inverse_propensity[:, None], relevance)
    fusion = fit(scored, ScoreTreeSettings(beta, (1.0, beta), depth=7, min_leaf=100))
    scores = fusion.fuse([classifier, embedding])      # CSR [N, L]

Fitted on validation points with their own filter pairs removed, never on the test split.
`cross_fit` tells how well the fusion does on points that it was not fitted on. Saved as plain
arrays: scikit-learn is needed to fit, not to score. utils/fusing/fuser.py is the calibrated fusion
of any methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.fusing.cross_fitting import FOLDS, CandidateRows
from utils.fusing.validation import warn_if_alike
from utils.metrics import evaluate
from utils.reading.arrays import read_arrays
from utils.reading.saved import Shape, check_arrays
from utils.sparse import canonical, contains, entry_rows, lookup

PARTS: dict[str, tuple[Shape, type]] = {  # of a saved score tree
    "tree.feature": ((None,), np.int64),
    "tree.threshold": ((None,), np.float64),
    "tree.left": ((None,), np.int64),
    "tree.right": ((None,), np.int64),
    "tree.value": ((None,), np.float64),
    "tree_weight": ((), np.float64),
    "member_weights": ((None,), np.float32),
    "statistics": ((None, None), np.float32),
}


@dataclass(frozen=True)
class Tree:
    """A decision tree as arrays over its nodes; a leaf has feature -1."""

    feature: np.ndarray  # [nodes] int
    threshold: np.ndarray  # [nodes] float64: to the left where the feature is at most this
    left: np.ndarray  # [nodes] int
    right: np.ndarray  # [nodes] int
    value: np.ndarray  # [nodes] float64: share of relevant candidates

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Candidates' features [M, F] -> probability of relevance [M] float32."""
        features = np.asarray(features, np.float32)  # as precise as when the thresholds were found
        node = np.zeros(len(features), np.int64)
        while True:
            feature = self.feature[node]
            inner = np.flatnonzero(feature >= 0)
            if len(inner) == 0:
                return self.value[node].astype(np.float32)
            at = node[inner]
            goes_left = features[inner, feature[inner]] <= self.threshold[at]
            node[inner] = np.where(goes_left, self.left[at], self.right[at])

    def check(self, columns: int) -> None:
        """Raise ValueError unless every walk ends: a tree from a stranger must not run in a circle.

        columns: features that there are.
        """
        nodes = len(self.feature)
        if any(getattr(self, f.name).shape != (nodes,) for f in fields(Tree)):
            raise ValueError(f"expected arrays [{nodes}] of the tree's nodes")
        inner = self.feature >= 0
        children = np.stack([self.left, self.right])[:, inner]
        if (
            nodes == 0
            or (children <= np.flatnonzero(inner)).any()
            or (children >= nodes).any()
            or (self.feature >= columns).any()
        ):
            raise ValueError(
                f"expected a tree whose children come after their parents, over {columns} features"
            )


def fit_tree(
    features: np.ndarray,
    relevant: np.ndarray,
    depth: int,
    min_leaf: int = 1,
) -> Tree:
    """Fit the tree of at most `depth` levels that best separates relevant candidates from others.

    Args:
        features: [M, F], finite.
        relevant: [M] bool.
        min_leaf: fewest candidates of a leaf, so that one lucky candidate makes no rule.
    """
    from sklearn.tree import DecisionTreeRegressor  # squared error on 0 and 1 is the Gini criterion

    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) == 0 or relevant.shape != features.shape[:1]:
        raise ValueError(
            "fit_tree: expected features [M, F] with M > 0 and relevant [M], got "
            f"{features.shape} and {relevant.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("fit_tree: expected finite features, got NaN or infinite ones")
    regressor = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=min_leaf, random_state=0)
    tree = regressor.fit(features, relevant.astype(np.float64)).tree_
    return Tree(
        feature=np.where(tree.children_left < 0, -1, tree.feature),
        threshold=tree.threshold.copy(),
        left=tree.children_left.copy(),
        right=tree.children_right.copy(),
        value=tree.value[:, 0, 0].copy(),
    )


# -------------------------------- candidates


def union_of(members: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """Every (point, label) that a member scores: CSR [N, L] of ones."""
    if len({member.shape for member in members}) != 1:
        raise ValueError(
            "fusion: expected members of one shape [N, L], got "
            f"{[member.shape for member in members]}"
        )
    union = sp.csr_matrix(members[0].shape, dtype=np.float32)
    for member in members:
        ones = np.ones(member.nnz, np.float32)
        union = union + sp.csr_matrix((ones, member.indices, member.indptr), member.shape)
    union.data[:] = 1.0
    return canonical(union)


def aligned(members: Sequence[sp.csr_matrix], union: sp.csr_matrix) -> np.ndarray:
    """The members' scores of each candidate, in the order of `union`'s entries.

    A member should score every candidate; one that does not is given its lowest score for that
    point.

    Returns:
        [M, members] float32
    """
    rows = entry_rows(union)
    columns = np.empty((union.nnz, len(members)), np.float32)
    for number, member in enumerate(members):
        scores = canonical(member)
        lowest = np.zeros(scores.shape[0])
        filled = np.flatnonzero(np.diff(scores.indptr))
        if len(filled):
            lowest[filled] = np.minimum.reduceat(scores.data, scores.indptr[filled])
        known = contains(scores, rows, union.indices)
        columns[:, number] = np.where(known, lookup(scores, rows, union.indices), lowest[rows])
    return columns


@dataclass(frozen=True)
class ScoredCandidates:
    """Candidates of validation points, scored by every member."""

    union: sp.csr_matrix  # [N, L] of ones: the candidates
    scores: np.ndarray  # [M, m] of each candidate
    statistics: np.ndarray  # [L, S] float32, features of labels
    relevance: sp.csr_matrix
    rows: CandidateRows  # the trees' features [M, m + S] and what is relevant

    @classmethod
    def of(
        cls, members: Sequence[sp.csr_matrix], statistics: np.ndarray, relevance: sp.csr_matrix
    ) -> ScoredCandidates:
        """Join the score matrices of the same points.

        Args:
            members: [N, L] each, their filter pairs removed; each scores the union of the
                candidates, or is given its lowest score there.
            statistics: [L, S] features of labels: inverse propensity, frequency.
            relevance: [N, L], relevant where stored.
        """
        union = union_of(members)
        statistics = np.asarray(statistics, np.float32)
        if statistics.ndim != 2 or len(statistics) != union.shape[1]:
            raise ValueError(
                f"fusion: expected label statistics [{union.shape[1]}, S], got {statistics.shape}"
            )
        scores = aligned(members, union)
        points = entry_rows(union)
        rows = CandidateRows(
            features=np.concatenate([scores, statistics[union.indices]], 1),
            relevant=contains(relevance, points, union.indices),
            points=points,
            num_points=union.shape[0],
        )
        return cls(union, scores, statistics, relevance, rows)

    def as_csr(self, values: np.ndarray) -> sp.csr_matrix:
        """Values of the candidates [M] as a score matrix [N, L]."""
        return sp.csr_matrix((values, self.union.indices, self.union.indptr), self.union.shape)


# -------------------------------- the fusion


@dataclass(frozen=True)
class ScoreTreeSettings:
    """Weights of the tree and of each member in the final score; the tree's limits."""

    tree_weight: float
    member_weights: tuple[float, ...]
    depth: int
    min_leaf: int


def final_scores(
    tree_weight: float, member_weights: np.ndarray, probability: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """The module's formula for candidates: tree's [M], members' [M, m] -> [M] float32."""
    return (tree_weight * probability + scores @ member_weights).astype(np.float32)


@dataclass(frozen=True)
class ScoreTree:
    """A fitted fusion of m members."""

    tree: Tree
    tree_weight: float
    member_weights: np.ndarray  # [m] float32
    statistics: np.ndarray  # [L, S] of labels

    def __call__(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Members' scores [M, m] of candidate labels [M] -> fused scores [M] float32."""
        if scores.ndim != 2 or scores.shape[1] != len(self.member_weights):
            raise ValueError(
                f"fusion: expected scores [M, {len(self.member_weights)}], one column a member, "
                f"got {scores.shape}"
            )
        probability = self.tree(np.concatenate([scores, self.statistics[labels]], 1))
        return final_scores(self.tree_weight, self.member_weights, probability, scores)

    def fuse(self, members: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
        """Fused scores of every candidate of the members' score matrices: CSR [N, L]."""
        union = union_of(members)
        fused = self(aligned(members, union), union.indices)
        return sp.csr_matrix((fused, union.indices, union.indptr), union.shape)

    def save(self, path: Path) -> None:
        """Write plain arrays, an .npz without pickles."""
        np.savez(
            path,
            tree_weight=self.tree_weight,
            member_weights=self.member_weights,
            statistics=self.statistics,
            **{f"tree.{f.name}": getattr(self.tree, f.name) for f in fields(Tree)},
        )

    @classmethod
    def load(cls, path: Path) -> ScoreTree:
        """Read what `save` wrote.

        Raises:
            InputError: it is something else.
        """
        arrays = read_arrays(path)
        check_arrays(path, arrays, PARTS)
        tree = Tree(**{f.name: arrays[f"tree.{f.name}"] for f in fields(Tree)})
        fusion = cls(
            tree, float(arrays["tree_weight"]), arrays["member_weights"], arrays["statistics"]
        )
        try:
            tree.check(len(fusion.member_weights) + fusion.statistics.shape[1])
        except ValueError as error:
            raise InputError(f"{path}: not a saved fusion ({error})") from error
        return fusion


# -------------------------------- fitting


def fit(scored: ScoredCandidates, settings: ScoreTreeSettings) -> ScoreTree:
    """Fit the tree on the candidates of validation points."""
    _check_weights(scored, settings)
    rows = scored.rows
    warn_if_alike(rows.relevant)
    tree = fit_tree(rows.features, rows.relevant, settings.depth, settings.min_leaf)
    weights = np.asarray(settings.member_weights, np.float32)
    return ScoreTree(tree, settings.tree_weight, weights, scored.statistics)


def _check_weights(scored: ScoredCandidates, settings: ScoreTreeSettings) -> None:
    members = scored.scores.shape[1]
    if len(settings.member_weights) != members:
        raise ValueError(
            f"fusion: expected a weight for each of {members} members, got "
            f"{list(settings.member_weights)}"
        )


def cross_fit(
    scored: ScoredCandidates, settings: ScoreTreeSettings, folds: int = FOLDS
) -> sp.csr_matrix:
    """Fused scores [N, L], each point's tree fitted on the points of the other folds.

    An honest estimate of what the fusion does for new points.
    """
    return _weighted(scored, settings, _cross_fitted(scored, settings, folds))


def _cross_fitted(
    scored: ScoredCandidates,
    settings: ScoreTreeSettings,
    folds: int,
) -> np.ndarray:
    """The trees' probabilities [M] float32."""
    limited = partial(fit_tree, depth=settings.depth, min_leaf=settings.min_leaf)
    return scored.rows.cross_fitted(limited, folds).astype(np.float32)


def _weighted(
    scored: ScoredCandidates, settings: ScoreTreeSettings, probability: np.ndarray
) -> sp.csr_matrix:
    weights = np.asarray(settings.member_weights, np.float32)
    return scored.as_csr(final_scores(settings.tree_weight, weights, probability, scored.scores))


def choose(
    scored: ScoredCandidates,
    choices: Sequence[ScoreTreeSettings],
    metric: str,
    folds: int = FOLDS,
) -> ScoreTreeSettings:
    """The settings whose cross-fitted scores have the best metric, of equal ones the first.

    Args:
        choices: settings that differ in their weights, not in the tree's limits.
        metric: such as "nDCG@5".
    """
    if len({(settings.depth, settings.min_leaf) for settings in choices}) != 1:
        raise ValueError("fusion: expected settings of one depth and min_leaf")
    probability = _cross_fitted(scored, choices[0], folds)
    ks = [int(metric.partition("@")[2])]
    values = []
    for settings in choices:
        scores = _weighted(scored, settings, probability)
        values.append(evaluate(scores, scored.relevance, None, ks)[metric])
    return choices[int(np.argmax(values))]
