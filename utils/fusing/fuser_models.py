"""Models over the features of candidates: logistic regression and boosted trees, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from utils.errors import InputError
from utils.fusing.features import num_members, rising_features
from utils.fusing.kernels import PER_MEMBER, walk_shares, walk_trees
from utils.reading.saved import Shape

SCALED = 50_000  # rows that say how features are scaled
# Of a row. Features such as the mean of ranks are sums of others: float32 cannot tell them apart.
RIDGE = 1e-5


@dataclass(frozen=True)
class TreeLimits:
    """How large boosted trees may be: their number, leaves of each, candidates of a leaf."""

    trees: int
    leaves: int
    min_leaf: int


@dataclass(frozen=True)
class Boosted:
    """Boosted trees as arrays over the nodes of all of them; a leaf has feature -1."""

    roots: np.ndarray  # [trees] int64
    feature: np.ndarray  # [nodes] int64
    threshold: np.ndarray  # [nodes] float64: to the left where the feature is at most this
    left: np.ndarray  # [nodes] int64
    right: np.ndarray  # [nodes] int64
    value: np.ndarray  # [nodes] float64; of inner nodes what a leaf in their place would say
    start: np.ndarray  # [] float64

    kind: ClassVar[str] = "boosted"
    PARTS: ClassVar[dict[str, tuple[Shape, type]]] = {
        "roots": ((None,), np.int64),
        "feature": ((None,), np.int64),
        "threshold": ((None,), np.float64),
        "left": ((None,), np.int64),
        "right": ((None,), np.int64),
        "value": ((None,), np.float64),
        "start": ((), np.float64),
    }

    @property
    def _nodes(self) -> tuple[np.ndarray, ...]:
        return self.roots, self.feature, self.threshold, self.left, self.right, self.value

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Margins [M] float64 of features [M, F]."""
        out = np.empty(len(x))
        walk_trees(x, *self._nodes, float(self.start), out)
        return out

    def shares(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """What the features of each owner add to the margins: [M, owners]; owner [F]."""
        out = np.zeros((len(x), int(owner.max()) + 1))
        walk_shares(x, *self._nodes, owner, out)
        return out

    def check(self, columns: int) -> None:
        """Raise ValueError unless every walk ends: children come after their parents."""
        nodes = len(self.feature)
        inner = self.feature >= 0
        # A tree has one leaf more than inner nodes.
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
        limits: TreeLimits,
    ) -> Boosted:
        """Fit trees that never fall where a feature says that a member is surer."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        model = HistGradientBoostingClassifier(
            max_iter=limits.trees,
            max_leaf_nodes=limits.leaves,
            learning_rate=0.1,
            min_samples_leaf=limits.min_leaf,
            l2_regularization=1.0,
            monotonic_cst=rising_features(num_members(x.shape[1])),
            early_stopping=False,
            random_state=0,
        )
        # Its threads wait for each other: on a busy machine that takes a minute.
        with threadpool_limits(1):
            model.fit(x, relevant)
        return cls._of_scikit_learn(model)

    @classmethod
    def _of_scikit_learn(cls, model: Any) -> Boosted:
        """The trees of a fitted HistGradientBoostingClassifier, one after the other."""
        # Its only door to the trees; tested for equality.
        trees = [part[0].nodes for part in model._predictors]
        nodes = np.concatenate(trees)
        sizes = [len(tree) for tree in trees]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        first = np.repeat(offsets[:-1], sizes)  # of the tree of each node
        return cls(
            roots=offsets[:-1],
            feature=np.where(nodes["is_leaf"].astype(bool), -1, nodes["feature_idx"]).astype(
                np.int64
            ),
            threshold=nodes["num_threshold"].copy(),
            left=nodes["left"].astype(np.int64) + first,
            right=nodes["right"].astype(np.int64) + first,
            value=nodes["value"].copy(),
            start=np.asarray(model._baseline_prediction.ravel()[0], np.float64),
        )


@dataclass(frozen=True)
class Linear:
    """A logistic regression: weight [F], intercept []."""

    weight: np.ndarray
    intercept: np.ndarray

    kind: ClassVar[str] = "linear"
    PARTS: ClassVar[dict[str, tuple[Shape, type]]] = {
        "weight": ((None,), np.float64),
        "intercept": ((), np.float64),
    }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Margins [M] float64 of features [M, F]."""
        return x @ self.weight + float(self.intercept)

    def shares(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """What the features of each owner add to the margins: [M, owners]; owner [F]."""
        return (x * self.weight) @ np.eye(int(owner.max()) + 1)[owner]

    def check(self, columns: int) -> None:
        """Raise ValueError unless there is a weight for each of so many features."""
        if self.weight.shape != (columns,):
            raise ValueError(f"expected weights [{columns}], got {self.weight.shape}")

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        relevant: np.ndarray,
        limits: TreeLimits,
    ) -> Linear:
        """Fit by Newton's method on features of one scale; `limits` are those of trees."""
        from sklearn.linear_model import LogisticRegression

        some = x[:: max(len(x) // SCALED, 1)].astype(np.float64)  # only conditions the problem
        mean = some.mean(0)
        scale = some.std(0)
        scale[scale == 0] = 1
        scaled = (x - mean.astype(np.float32)) / scale.astype(np.float32)
        # BLAS may raise the flag over finite arrays (numpy/numpy#24067): what counts is whether
        # the result is finite
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

    @classmethod
    def sum_of_members(cls, columns: int) -> Linear:
        """How near a label is to each member's best: for candidates that teach nothing."""
        weight = np.zeros(columns)
        weight[1 : PER_MEMBER * num_members(columns) : PER_MEMBER] = 1.0
        return cls(weight, np.asarray(0.0))


FuserModel = Linear | Boosted
MODELS: dict[str, type[Linear] | type[Boosted]] = {"linear": Linear, "boosted": Boosted}
KINDS = tuple(MODELS)


def fit_model(
    kind: str,
    limits: TreeLimits,
    x: np.ndarray,
    relevant: np.ndarray,
) -> FuserModel:
    """Fit a model of that kind, or sum the members where all rows are right or all wrong."""
    if relevant.all() or not relevant.any():
        return Linear.sum_of_members(x.shape[1])
    return MODELS[kind].fit(x, relevant, limits)
