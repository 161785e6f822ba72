"""Models over the features of candidates: logistic regression and boosted trees, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from utils.errors import InputError
from utils.fusing.features import rising_features
from utils.fusing.kernels import walk_shares, walk_trees
from utils.reading.saved import Shape

SCALED = 50_000  # rows that say how features are scaled
# of a row; features such as the mean of ranks are sums of others: float32 could not tell them apart
RIDGE = 1e-5


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
        walk_trees(
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
        walk_shares(
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
KINDS = tuple(MODELS)
