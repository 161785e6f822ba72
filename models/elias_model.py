"""The parameters of ELIAS and what a training step computes with them (Gupta et al., NeurIPS 2022, arXiv 2210.08410).

    s_c = clip(alpha softmax(W_C x)_c, 0, 1)      s_cl = clip(beta softmax over the edges of c, 0, 1)

Edges of a cluster with fewer than kappa labels get a beta in proportion: the clip has no gradient where it bites, and
with beta of at least the number of edges every weight would be 1.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elias_graph import Graph
from models.elias_index import GraphIndex, SearchSettings, log_cluster_scores
from models.elias_search import Shortlist, select_labels
from models.encoder import TextEncoder
from utils.config import ConfigError, MethodConfig, option
from utils.row_store import RowStore

USUAL_BEAM, USUAL_KAPPA, USUAL_BETA_SHARE = 20, 1000, 0.15


@dataclass(frozen=True)
class EliasConfig(MethodConfig):
    graph: str = option("cluster", "A: cluster = balanced clusters of the labels; approx = the labels of the points "
                                   "that each cluster attracts in the run it starts from; else a file (.npz)")
    max_leaf: int = option(100, "labels of a cluster of the first graph, at most: C = 2^ceil(log2(L / max_leaf))", ge=1)
    cluster_seed: int = option(0, "seed of the clustering", ge=0)
    kappa: int | None = option(None, "edges of a cluster, at most; null = 1000, or all labels if there are fewer", ge=1)
    beam: int | None = option(None, "clusters searched; null = 20, or all if there are fewer", ge=1)
    K: int = option(2000, "labels scored: those with the best paths", ge=1)
    alpha: float = option(10.0, "cluster scores are clip(alpha softmax, 0, 1)", gt=0)
    beta: float | None = option(None, "edge weights are clip(beta softmax, 0, 1); null = 0.15 kappa (150 as published)",
                                gt=0)
    tau: float = option(1.0, "temperature of the label scores: w . x / tau + bias", gt=0)
    cluster_tau: float | None = option(None, "temperature of the cluster scores; null = tau", gt=0)
    wl_dim: int | None = option(None, "project embeddings to this many dimensions for the label classifiers", ge=1)
    init: Literal["random", "labels", "vectors", "keep"] = option(
        "random", "label classifiers start random, from the labels' texts, from the label vectors of the run that this "
                  "one starts from, or keep = from that elias run's label classifiers")
    init_bias: float = option(0.0, "start of every label's bias")
    edge_init: Literal["random", "equal", "shares"] = option(
        "random", "elias-2: the edges' logits start uniform random as published; equal; shares = logarithms of A's "
                  "values, divided by the largest that the label has: it starts in its main cluster")
    loss_lambda: float = option(0.05, "weight of the path scores' own loss", ge=0)
    dropout: float = option(0.0, "dropout rate on the text embedding in training", ge=0, lt=1)
    accumulation_steps: int = option(1, "steps between two updates of the label classifiers", ge=1)
    swa: bool = option(False, "score with the average of the weights along the way (stochastic weight averaging)")
    swa_start: int = option(6, "swa: first epoch, from 0, whose weights count", ge=0)
    swa_step: int = option(2000, "swa: steps between two weights that are averaged", ge=1)
    ranker_calibrate: bool = option(True, "elias_utils.py sparse_ranker: a tree fitted on validation points takes part")


@dataclass(frozen=True)
class Elias1Config(EliasConfig):
    loss_lambda: float = option(0.0, "weight of the path scores' own loss", ge=0)


@dataclass(frozen=True)
class Elias2Config(EliasConfig):
    graph: str = option("approx", "A: approx = the labels of the points that each cluster attracts in the run it "
                                  "starts from; cluster = balanced clusters of the labels; else a file (.npz)")


@dataclass(frozen=True)
class Limits:
    """The options that depend on the sizes, resolved: `null` is the usual value, or all where there are fewer."""
    beam: int
    kappa: int
    beta: float

    @classmethod
    def of(cls, s: EliasConfig, num_clusters: int, num_labels: int) -> Limits:
        """ConfigError for a beam above C, a kappa above L, or a beta with which no edge would learn."""
        kappa = _at_most(s.kappa, USUAL_KAPPA, num_labels, "method.kappa", "labels")
        if s.beta is not None and s.beta >= kappa > 1 and s.name == "elias-2":
            raise ConfigError(f"method.beta is {s.beta:g}, expected less than method.kappa, {kappa}: from there on "
                              "every edge weight is 1 and none is learned")
        return cls(_at_most(s.beam, USUAL_BEAM, num_clusters, "method.beam", "clusters"), kappa,
                   USUAL_BETA_SHARE * kappa if s.beta is None else s.beta)


def _at_most(value: int | None, usual: int, limit: int, key: str, what: str) -> int:
    if value is not None and value > limit:
        raise ConfigError(f"{key} is {value}, larger than the number of {what}, {limit}")
    return min(usual, limit) if value is None else value


class EliasModel(nn.Module):
    """encoder, clusters W_C [C, D], labels W_L [L, D'], bias [L, 1], and the edges' logits [C, kappa] where learned.

    Args:
        num_labels: rows of W_L; 0 for a model that only encodes and leaves the rest to an index.
    """

    def __init__(self, encoder: TextEncoder, config: EliasConfig, num_clusters: int, num_labels: int,
                 limits: Limits) -> None:
        super().__init__()
        self.encoder, self.config, self.limits = encoder, config, limits
        width = config.wl_dim or encoder.dim
        self.projection = nn.Linear(encoder.dim, width, bias=False) if config.wl_dim else None
        self.clusters = nn.Parameter(torch.randn(num_clusters if num_labels else 0, encoder.dim) / encoder.dim ** 0.5)
        self.labels = nn.Parameter(torch.randn(num_labels, width) / width ** 0.5)
        self.bias = nn.Parameter(torch.full((num_labels, 1), config.init_bias))
        for parameter in (self.labels, self.bias):
            parameter.row_sparse = parameter.factored = True
            parameter.outer_gradient = None
        self.edges = None
        if config.name == "elias-2" and num_labels:
            self.edges = nn.Parameter(torch.rand(num_clusters, limits.kappa))
            self.edges.row_sparse = True

    def set_graph(self, graph: Graph) -> None:
        device = self.labels.device
        self._labels = torch.from_numpy(graph.labels).to(device)                      # [C, W]
        lengths = torch.from_numpy(graph.lengths).to(device)
        self._outside = torch.arange(graph.labels.shape[1], device=device) >= lengths[:, None]
        self._log_beta = (self.limits.beta / self.limits.kappa * lengths).log().float()
        self._log_values = torch.from_numpy(np.log(np.maximum(graph.values, 1e-30))).to(device)

    def project(self, queries: Tensor) -> Tensor:
        """Embeddings as the label classifiers take them: [B, D']."""
        return queries if self.projection is None else self.projection(queries)

    def log_cluster_scores(self, queries: Tensor) -> Tensor:
        """log s_c: [B, C]."""
        with torch.autocast(queries.device.type, enabled=False):
            tau = self.config.cluster_tau or self.config.tau
            return log_cluster_scores(queries.float() @ self.clusters.T / tau, self.config.alpha)

    def log_edges(self, clusters: Tensor) -> Tensor:
        """log s_cl of all edges of some clusters [R, W]; stage 1: A's own values."""
        if self.edges is None:
            return self._log_values[clusters]
        logits = F.embedding(clusters, self.edges, sparse=True)[:, :self._labels.shape[1]]
        logits = logits.masked_fill(self._outside[clusters], -torch.inf)
        return (F.log_softmax(logits, dim=1) + self._log_beta[clusters, None]).clamp(max=0)

    @torch.no_grad()
    def all_log_edges(self) -> np.ndarray:
        return self.log_edges(torch.arange(len(self._labels), device=self._labels.device)).cpu().numpy()

    def shortlist(self, log_scores: Tensor, clusters: Tensor) -> tuple[Shortlist, Tensor]:
        """The K labels with the best paths, and log s_c s_cl of each, with its gradient [B, K].

        Args:
            log_scores: [B, C]; clusters: [B, S], -1 for none.
        """
        slots = clusters.clamp(min=0)
        if clusters.is_cuda:      # looking for clusters that several queries share would make the host wait
            rows, place = slots.flatten(), torch.arange(slots.numel(), device=slots.device).view_as(slots)
        else:
            rows, place = slots.unique(return_inverse=True)
        log_edges = self.log_edges(rows)                                                      # [R, W]
        log_scores = log_scores.gather(1, slots)                                              # [B, S]
        found = select_labels(clusters, log_scores.detach(), self._labels, log_edges.detach(), place, self.config.K)
        width = log_edges.shape[1]
        slot = torch.div(found.edges, width, rounding_mode="floor")
        edges = place.gather(1, slot) * width + found.edges % width
        return found, log_scores.gather(1, slot) + log_edges.flatten()[edges]

    def index(self) -> GraphIndex:
        """The index on the present weights, without copies on a CPU; float32."""
        clusters, labels, bias = (p.detach().cpu().numpy() for p in (self.clusters, self.labels, self.bias))
        return GraphIndex(RowStore.of(clusters, "float32"), RowStore.of(labels, "float32"), bias[:, 0],
                          self._labels.cpu().numpy(), self.all_log_edges(), self.search_settings())

    def search_settings(self) -> SearchSettings:
        s = self.config
        return SearchSettings(s.alpha, s.cluster_tau or s.tau, s.tau, self.limits.beam, s.K)
