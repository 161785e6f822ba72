"""Options that all methods of linear rankers share: what they read, and how their solver stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from utils.config.config import Config, MethodConfig, option
from utils.config.sections import LARGEST, MANY_LABELS
from utils.linear.layer import Solver
from utils.linear.partition_tree import COMBINERS
from utils.linear.tree_training import Ranking


@dataclass(frozen=True)
class LinearConfig(MethodConfig):
    has_encoder: ClassVar[bool] = False
    features: tuple[str, ...] = option(
        ("tfidf",),
        "what is read: tfidf, run folders (their embeddings), start = the "
        "model of run.start_from or of the stage before, and .npy files: "
        "X.{trn,tst}.npy, X.npy for short, or one of the two",
    )
    cost: float = option(Solver.cost, "C of the squared hinge", ge=1e-9, le=1e9)
    bias: float = option(Solver.bias, "value of the constant feature", ge=0, le=LARGEST)
    eps: float = option(
        Solver.eps, "solver: tolerance of the projected gradients", ge=1e-12, le=1e3
    )
    passes: int = option(
        Solver.passes, "solver: passes over the points of a ranker, at most", ge=1, le=10**6
    )
    threshold: float = option(
        Solver.threshold, "weights of a smaller magnitude are dropped", ge=0, le=LARGEST
    )


@dataclass(frozen=True)
class XrLinearConfig(LinearConfig):
    label_embedding: Literal["pifa", "pifa+text"] = option(
        "pifa",
        "what labels are clustered by: centroids of their points' features; and their own text's "
        "TF-IDF",
        auto="by the text too where labels have one",
    )
    max_leaf: int = option(
        100,
        "labels of a last-level cluster, at most (before labels are copied)",
        auto="200, less for few labels",
        ge=1,
        le=MANY_LABELS,
    )
    splits: int = option(32, "children of a cluster above the last level", ge=2, le=10**6)
    trees: int = option(1, "trees of other random clusters, their scores averaged", ge=1, le=1000)
    negatives: Literal["positives", "beam", "both"] = option(
        "positives",
        "points a cluster's rankers are trained on: those with a label in it (teacher forcing), "
        "those whose beam reaches it (matcher aware), both",
    )
    beam: int = option(10, "clusters kept at each level of a search", ge=1, le=10**6)
    combiner: Literal[
        "l1-hinge", "l2-hinge", "l3-hinge", "l4-hinge", "l5-hinge", "sigmoid", "log-sigmoid", "sum"
    ] = option("l3-hinge", "how the margins along a path make its score")

    @property
    def mean_of_copies(self) -> bool:
        """Does a label score the mean of its copies that were reached, or their maximum?"""
        return True


@dataclass(frozen=True)
class OverlapConfig(XrLinearConfig):
    copies: int = option(2, "clusters that a label may live in (the paper's lambda)", ge=1, le=1000)
    rounds: int = option(
        1, "times that labels are assigned again and the tree is trained again", ge=1, le=1000
    )
    merge: Literal["mean", "max"] = option(
        "mean", "score of a label of which several copies were reached"
    )

    @property
    def mean_of_copies(self) -> bool:
        return self.merge == "mean"


def solver(config: Config) -> Solver:
    """The solver of a config whose section `method` is a LinearConfig."""
    options = config.method
    return Solver(
        options.cost, options.bias, options.eps, options.passes, options.threshold, config.run.seed
    )


def ranking(config: Config, threads: int) -> Ranking:
    """How a config's rankers are trained."""
    options = config.method
    return Ranking(
        solver(config), options.negatives, options.beam, COMBINERS[options.combiner], threads
    )
