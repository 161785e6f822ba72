"""Options of both stages of ELIAS, and those that depend on the sizes of the data, resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.elias.graph import Graph, cluster_count
from utils.config.config import ConfigError, option
from utils.config.sections import (
    LARGEST,
    MANY_DIMENSIONS,
    MANY_EPOCHS,
    MANY_LABELS,
    SMALLEST,
    EncodingConfig,
)

USUAL_BEAM = 20
USUAL_KAPPA = 1000
USUAL_BETA_SHARE = 0.15


@dataclass(frozen=True)
class EliasConfig(EncodingConfig):
    learns_edges: ClassVar[bool] = False

    graph: str = option(
        "cluster",
        "A: cluster = balanced clusters of the labels; approx = the labels of the points that "
        "each cluster attracts in the run it starts from (either may have been made before, by "
        "elias_utils.py); else a file (.npz)",
    )
    max_leaf: int = option(
        100,
        "labels of a cluster of the first graph, at most: C = 2^ceil(log2(L / max_leaf))",
        auto="200, less for few labels",
        ge=1,
        le=MANY_LABELS,
    )
    cluster_seed: int = option(0, "seed of the clustering", ge=0, le=2**32 - 1)
    fresh_encoder: bool = option(
        False,
        "start from the pretrained encoder all the same: the run that this one starts from gives "
        "the embeddings that the labels are clustered by, nothing else",
    )
    kappa: int | None = option(
        None,
        "edges of a cluster, at most; null = 1000, or all labels if there are fewer",
        ge=1,
        le=MANY_LABELS,
    )
    beam: int | None = option(
        None, "clusters searched; null = 20, or all if there are fewer", ge=1, le=MANY_LABELS
    )
    K: int = option(2000, "labels scored: those with the best paths", ge=1, le=MANY_LABELS)
    alpha: float = option(
        10.0, "cluster scores are clip(alpha softmax, 0, 1)", ge=SMALLEST, le=LARGEST
    )
    beta: float | None = option(
        None,
        "edge weights are clip(beta softmax, 0, 1); null = 0.15 kappa (150 as published)",
        ge=SMALLEST,
        le=MANY_LABELS,
    )
    tau: float = option(
        1.0, "temperature of the label scores: w . x / tau + bias", ge=SMALLEST, le=LARGEST
    )
    cluster_tau: float | None = option(
        None, "temperature of the cluster scores; null = tau", ge=SMALLEST, le=LARGEST
    )
    wl_dim: int | None = option(
        None,
        "project embeddings to this many dimensions for the label classifiers",
        ge=1,
        le=MANY_DIMENSIONS,
    )
    init: Literal["random", "labels", "vectors", "keep"] = option(
        "random",
        "label classifiers start random, from the labels' texts, from the label vectors of the "
        "run that this one starts from, or keep = from that elias run's label classifiers",
    )
    init_bias: float = option(0.0, "start of every label's bias", ge=-LARGEST, le=LARGEST)
    edge_init: Literal["random", "equal", "shares"] = option(
        "random",
        "elias-2: the edges' logits start uniform random as published; equal; shares = "
        "logarithms of A's values, divided by the largest that the label has: it starts in its "
        "main cluster",
    )
    loss_lambda: float = option(0.05, "weight of the path scores' own loss", ge=0, le=LARGEST)
    dropout: float = option(0.0, "dropout rate on the text embedding in training", ge=0, lt=1)
    accumulation_steps: int = option(
        1, "steps between two updates of the label classifiers", ge=1, le=10**6
    )
    swa: bool = option(
        False, "score with the average of the weights along the way (stochastic weight averaging)"
    )
    swa_start: int = option(
        6, "swa: first epoch, from 0, whose weights count", ge=0, le=MANY_EPOCHS
    )
    swa_step: int = option(2000, "swa: steps between two weights that are averaged", ge=1, le=10**9)
    ranker_calibrate: bool = option(
        True, "elias_utils.py sparse_ranker: a tree fitted on validation points takes part"
    )


@dataclass(frozen=True)
class Elias1Config(EliasConfig):
    loss_lambda: float = option(0.0, "weight of the path scores' own loss", ge=0, le=LARGEST)


@dataclass(frozen=True)
class Elias2Config(EliasConfig):
    learns_edges: ClassVar[bool] = True

    graph: str = option(
        "approx",
        "A: approx = the labels of the points that each cluster attracts in the run it starts "
        "from; cluster = balanced clusters of the labels (either may have been made before, by "
        "elias_utils.py); else a file (.npz)",
    )


@dataclass(frozen=True)
class Limits:
    """The options that depend on the sizes, resolved.

    `null` is the usual value, or all where there are fewer.
    """

    beam: int
    kappa: int
    beta: float

    @classmethod
    def of(
        cls,
        options: EliasConfig,
        num_clusters: int,
        num_labels: int,
    ) -> Limits:
        """Resolve a run's options.

        Raises:
            ConfigError: a beam above C, a kappa above L, or a beta with which no edge would learn.
        """
        kappa = _at_most(options.kappa, USUAL_KAPPA, num_labels, "method.kappa", "labels")
        if options.beta is not None and options.beta >= kappa > 1 and options.learns_edges:
            raise ConfigError(
                f"method.beta is {options.beta:g}, expected less than method.kappa, {kappa}: from "
                "there on every edge weight is 1 and none is learned"
            )
        beam = _at_most(options.beam, USUAL_BEAM, num_clusters, "method.beam", "clusters")
        beta = USUAL_BETA_SHARE * kappa if options.beta is None else options.beta
        return cls(beam, kappa, beta)


@dataclass(frozen=True)
class SearchSettings:
    """How a run searches.

    Attributes:
        alpha: of the cluster scores.
        cluster_tau: temperature of the cluster scores.
        tau: temperature of the label scores.
        beam: clusters searched.
        size: labels scored, K.
    """

    alpha: float
    cluster_tau: float
    tau: float
    beam: int
    size: int

    @classmethod
    def of(cls, options: EliasConfig, limits: Limits) -> SearchSettings:
        """As a run's options say."""
        cluster_tau = options.cluster_tau or options.tau
        return cls(options.alpha, cluster_tau, options.tau, limits.beam, options.K)


def _at_most(
    value: int | None,
    usual: int,
    limit: int,
    key: str,
    what: str,
) -> int:
    if value is not None and value > limit:
        raise ConfigError(f"{key} is {value}, larger than the number of {what}, {limit}")
    return min(usual, limit) if value is None else value


def clusters_of(options: EliasConfig, num_labels: int) -> int:
    """The clusters that a run will have, before there are any."""
    if options.graph in ("cluster", "approx"):
        return cluster_count(num_labels, options.max_leaf)
    return Graph.clusters_of_file(options.graph, num_labels)
