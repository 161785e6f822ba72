"""Score fusion: several models score the same candidates, a decision tree says how likely each is
relevant.

    final = tree_weight * tree(member scores, label statistics) + sum_m member_weights[m] * score_m

DEXA (Dahiya et al., KDD 2023): members (classifier, embedding), statistic inverse propensity, depth
7, tree_weight beta, weights (1, beta). ELIAS++ (Gupta et al., NeurIPS 2022): members (ranker,
index), statistic label frequency, depth 5, tree_weight 0.3, weights (0.7, 0).

    fusion = fit([classifier, embedding], inverse_propensity[:, None], relevance,
                 ScoreTreeSettings(beta, (1.0, beta), depth=7, min_leaf=100))
    scores = fusion.fuse([classifier, embedding])      # CSR [N, L]

Fitted on validation points with their own filter pairs removed, never on the test split.
`cross_fit` tells how well the fusion does on points that it was not fitted on. Saved as plain
arrays: scikit-learn is needed to fit, not to score.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.metrics import evaluate
from utils.reading.matrices import read_arrays
from utils.reading.saved import Shape, check_arrays
from utils.sparse import canonical, contains, entry_rows, lookup

log = logging.getLogger(__name__)


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
        # the precision that the thresholds were found in
        features = np.asarray(features, np.float32)
        node = np.zeros(len(features), np.int64)
        while True:
            feature = self.feature[node]
            inner = np.flatnonzero(feature >= 0)
            if len(inner) == 0:
                return self.value[node].astype(np.float32)
            at = node[inner]
            goes_left = features[inner, feature[inner]] <= self.threshold[at]
            node[inner] = np.where(goes_left, self.left[at], self.right[at])


PARTS: dict[str, tuple[Shape, type]] = {  # of a saved fusion
    "tree.feature": ((None,), np.int64),
    "tree.threshold": ((None,), np.float64),
    "tree.left": ((None,), np.int64),
    "tree.right": ((None,), np.int64),
    "tree.value": ((None,), np.float64),
    "tree_weight": ((), np.float64),
    "member_weights": ((None,), np.float32),
    "statistics": ((None, None), np.float32),
}


def fit_tree(features: np.ndarray, relevant: np.ndarray, depth: int, min_leaf: int = 1) -> Tree:
    """The tree of at most `depth` levels that best separates relevant candidates from the others.

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
    fitted = (
        DecisionTreeRegressor(max_depth=depth, min_samples_leaf=min_leaf, random_state=0)
        .fit(features, relevant.astype(np.float64))
        .tree_
    )
    return Tree(
        np.where(fitted.children_left < 0, -1, fitted.feature),
        fitted.threshold.copy(),
        fitted.children_left.copy(),
        fitted.children_right.copy(),
        fitted.value[:, 0, 0].copy(),
    )


# -------------------------------- candidates


def candidates(members: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """Every (point, label) that a member scores: CSR [N, L] of ones."""
    if len({m.shape for m in members}) != 1:
        raise ValueError(
            f"fusion: expected members of one shape [N, L], got {[m.shape for m in members]}"
        )
    union = sum(
        sp.csr_matrix((np.ones(m.nnz, np.float32), m.indices, m.indptr), m.shape) for m in members
    )
    union.data[:] = 1.0
    return canonical(union)


def aligned(members: Sequence[sp.csr_matrix], union: sp.csr_matrix) -> np.ndarray:
    """The members' scores of each candidate [M, members] float32, in the order of `union`'s
    entries.

    A member should score every candidate; one that does not is given its lowest score for that
    point.
    """
    rows = entry_rows(union)
    columns = np.empty((union.nnz, len(members)), np.float32)
    for number, member in enumerate(map(canonical, members)):
        lowest = np.zeros(member.shape[0])
        filled = np.flatnonzero(np.diff(member.indptr))
        if len(filled):
            lowest[filled] = np.minimum.reduceat(member.data, member.indptr[filled])
        known = contains(member, rows, union.indices)
        columns[:, number] = np.where(known, lookup(member, rows, union.indices), lowest[rows])
    return columns


# -------------------------------- the fusion


@dataclass(frozen=True)
class ScoreTreeSettings:
    """Weights of the tree and of each member in the final score; the tree's limits."""

    tree_weight: float
    member_weights: tuple[float, ...]
    depth: int
    min_leaf: int


@dataclass(frozen=True)
class ScoreTree:
    """A fitted fusion of m members. Attributes: tree; tree_weight; member_weights [m]; statistics
    [L, S] of labels."""

    tree: Tree
    tree_weight: float
    member_weights: np.ndarray
    statistics: np.ndarray

    def __call__(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Members' scores [M, m] of candidate labels [M] -> fused scores [M] float32."""
        if scores.ndim != 2 or scores.shape[1] != len(self.member_weights):
            raise ValueError(
                f"fusion: expected scores [M, {len(self.member_weights)}], one column a member, "
                f"got {scores.shape}"
            )
        probability = self.tree(np.concatenate([scores, self.statistics[labels]], 1))
        return (self.tree_weight * probability + scores @ self.member_weights).astype(np.float32)

    def fuse(self, members: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
        """Fused scores of every candidate of the members' score matrices: CSR [N, L]."""
        union = candidates(members)
        return sp.csr_matrix(
            (self(aligned(members, union), union.indices), union.indices, union.indptr), union.shape
        )

    def save(self, path: Path) -> None:
        """Plain arrays, an .npz without pickles."""
        np.savez(
            path,
            tree_weight=self.tree_weight,
            member_weights=self.member_weights,
            statistics=self.statistics,
            **{f"tree.{f.name}": getattr(self.tree, f.name) for f in fields(Tree)},
        )

    @classmethod
    def load(cls, path: Path) -> ScoreTree:
        """What `save` wrote; ValueError if it is something else."""
        arrays = read_arrays(path)
        check_arrays(path, arrays, PARTS)
        tree = Tree(**{f.name: arrays[f"tree.{f.name}"] for f in fields(Tree)})
        fusion = cls(
            tree, float(arrays["tree_weight"]), arrays["member_weights"], arrays["statistics"]
        )
        try:
            fusion.check()
        except ValueError as error:
            raise InputError(f"{path}: not a saved fusion ({error})") from error
        return fusion

    def check(self) -> None:
        """ValueError for arrays that are not those of a fusion: a tree from a stranger must not run
        in a circle."""
        tree = self.tree
        nodes = len(self.tree.feature)
        if any(getattr(tree, f.name).shape != (nodes,) for f in fields(Tree)):
            raise ValueError(f"expected arrays [{nodes}] of the tree's nodes")
        inner = tree.feature >= 0
        features = len(self.member_weights) + self.statistics.shape[1]
        children = np.stack([tree.left, tree.right])[:, inner]
        if (
            nodes == 0
            or (children <= np.flatnonzero(inner)).any()
            or (children >= nodes).any()
            or (tree.feature >= features).any()
        ):
            raise ValueError(
                f"expected a tree whose children come after their parents, over {features} features"
            )


def warn_if_alike(relevant: np.ndarray) -> None:
    """Say that the candidates of the validation points are all right, or all wrong: nothing can be
    learned from them.

    relevant: [candidates] bool.
    """
    if relevant.all() or not relevant.any():
        log.warning(
            "all %d candidates of the validation points are %s: how to weigh the members cannot "
            "be learned",
            len(relevant),
            "right" if relevant.any() else "wrong",
        )


def fit(
    members: Sequence[sp.csr_matrix],
    statistics: np.ndarray,
    relevance: sp.csr_matrix,
    settings: ScoreTreeSettings,
) -> ScoreTree:
    """Fit the tree on the candidates of validation points.

    Args:
        members: score matrices [N, L] of the same points, their filter pairs removed; each scores
            the union of the candidates, or is given its lowest score there.
        statistics: [L, S] features of labels: inverse propensity, frequency.
        relevance: [N, L], relevant where > 0.
    """
    if len(settings.member_weights) != len(members):
        raise ValueError(
            f"fusion: expected a weight for each of {len(members)} members, got "
            f"{list(settings.member_weights)}"
        )
    statistics = np.asarray(statistics, np.float32)
    if statistics.ndim != 2 or len(statistics) != members[0].shape[1]:
        raise ValueError(
            f"fusion: expected label statistics [{members[0].shape[1]}, S], got {statistics.shape}"
        )
    union = candidates(members)
    features = np.concatenate([aligned(members, union), statistics[union.indices]], 1)
    relevant = contains(relevance, entry_rows(union), union.indices)
    warn_if_alike(relevant)
    tree = fit_tree(features, relevant, settings.depth, settings.min_leaf)
    return ScoreTree(
        tree, settings.tree_weight, np.asarray(settings.member_weights, np.float32), statistics
    )


def cross_fit(
    members: Sequence[sp.csr_matrix],
    statistics: np.ndarray,
    relevance: sp.csr_matrix,
    settings: ScoreTreeSettings,
    folds: int = 5,
    seed: int = 0,
) -> sp.csr_matrix:
    """Fused scores where each point's tree was fitted on the points of the other folds: an honest
    estimate. [N, L]"""
    return next(cross_fit_all(members, statistics, relevance, [settings], folds, seed))


def cross_fit_all(
    members: Sequence[sp.csr_matrix],
    statistics: np.ndarray,
    relevance: sp.csr_matrix,
    settings: Sequence[ScoreTreeSettings],
    folds: int = 5,
    seed: int = 0,
) -> Iterator[sp.csr_matrix]:
    """`cross_fit` for several settings that differ in their weights, not in the tree's limits."""
    count = relevance.shape[0]
    if not 2 <= folds <= count:
        raise ValueError(
            f"fusion: expected from 2 folds to the number of points, {count}; got {folds}"
        )
    if len({(s.depth, s.min_leaf) for s in settings}) != 1:
        raise ValueError("fusion: expected settings of one depth and min_leaf")
    fold = np.random.default_rng(seed).permutation(count) % folds
    union = candidates(members)
    scores = aligned(members, union)
    rows = entry_rows(union)
    features = np.concatenate([scores, np.asarray(statistics, np.float32)[union.indices]], 1)
    relevant = contains(relevance, rows, union.indices)
    probability = np.empty(union.nnz, np.float32)
    for number in range(folds):
        inside = fold[rows] == number
        tree = fit_tree(
            features[~inside], relevant[~inside], settings[0].depth, settings[0].min_leaf
        )
        probability[inside] = tree(features[inside])
    for s in settings:
        fused = s.tree_weight * probability + scores @ np.asarray(s.member_weights, np.float32)
        yield sp.csr_matrix((fused.astype(np.float32), union.indices, union.indptr), union.shape)


def choose(
    members: Sequence[sp.csr_matrix],
    statistics: np.ndarray,
    relevance: sp.csr_matrix,
    settings: Sequence[ScoreTreeSettings],
    metric: str,
    folds: int = 5,
) -> ScoreTreeSettings:
    """The settings whose cross-fitted scores have the best metric, such as "nDCG@5"; of equal ones
    the first."""
    ks = [int(metric.partition("@")[2])]
    values = [
        evaluate(scores, relevance, None, ks)[metric]
        for scores in cross_fit_all(members, statistics, relevance, settings, folds)
    ]
    return settings[int(np.argmax(values))]
