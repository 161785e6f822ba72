"""The parameters of ELIAS and what a training step computes with them (Gupta et al., NeurIPS 2022,
arXiv 2210.08410).

    s_c = clip(alpha softmax(W_C x)_c, 0, 1)      s_cl = clip(beta softmax over the edges of c, 0,
        1)

Edges of a cluster with fewer than kappa labels get a beta in proportion: the clip has no gradient
where it bites, and with beta of at least the number of edges every weight would be 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elias.graph import Graph
from models.elias.index import GraphIndex, SearchSettings, raised_shares
from models.elias.search import Shortlist, select_labels
from models.encoders.encoder import TextEncoder
from utils.config.config import ConfigError, MethodConfig, option
from utils.config.sections import LARGEST, MANY_DIMENSIONS, MANY_EPOCHS, MANY_LABELS, SMALLEST
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.row_store import RowStore

USUAL_BEAM, USUAL_KAPPA, USUAL_BETA_SHARE = 20, 1000, 0.15


@dataclass(frozen=True)
class EliasConfig(MethodConfig):
    graph: str = option(
        "cluster",
        "A: cluster = balanced clusters of the labels; approx = the labels of the points that "
        "each cluster attracts in the run it starts from (either may have been made before, by "
        "elias_utils.py); else a file (.npz)",
    )
    max_leaf: int = option(
        100,
        "labels of a cluster of the first graph, at most: C = 2^ceil(log2(L / max_leaf))",
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
    graph: str = option(
        "approx",
        "A: approx = the labels of the points that each cluster attracts in the run it starts "
        "from; cluster = balanced clusters of the labels (either may have been made before, by "
        "elias_utils.py); else a file (.npz)",
    )


@dataclass(frozen=True)
class Limits:
    """The options that depend on the sizes, resolved: `null` is the usual value, or all where there
    are fewer."""

    beam: int
    kappa: int
    beta: float

    @classmethod
    def of(cls, s: EliasConfig, num_clusters: int, num_labels: int) -> Limits:
        """ConfigError for a beam above C, a kappa above L, or a beta with which no edge would
        learn."""
        kappa = _at_most(s.kappa, USUAL_KAPPA, num_labels, "method.kappa", "labels")
        if s.beta is not None and s.beta >= kappa > 1 and s.name == "elias-2":
            raise ConfigError(
                f"method.beta is {s.beta:g}, expected less than method.kappa, {kappa}: from there "
                "on every edge weight is 1 and none is learned"
            )
        return cls(
            _at_most(s.beam, USUAL_BEAM, num_clusters, "method.beam", "clusters"),
            kappa,
            USUAL_BETA_SHARE * kappa if s.beta is None else s.beta,
        )


def _at_most(value: int | None, usual: int, limit: int, key: str, what: str) -> int:
    if value is not None and value > limit:
        raise ConfigError(f"{key} is {value}, larger than the number of {what}, {limit}")
    return min(usual, limit) if value is None else value


class _ChosenClusters(torch.autograd.Function):
    """log s_c of the clusters [B, S] that are searched: min(log(alpha softmax(W_C x)_c), 0), of
    what is known already.

    Args:
        queries: [B, D]; clusters: W_C [C, D]; raised: log(alpha softmax(W_C x)) [B, C]; chosen: [B,
        S].
    """

    @staticmethod
    def forward(
        ctx, queries: Tensor, clusters: Tensor, raised: Tensor, chosen: Tensor, alpha: float
    ) -> Tensor:
        found = raised.gather(1, chosen)
        ctx.save_for_backward(queries, clusters, raised, chosen, found <= 0)
        ctx.alpha = alpha
        return found.clamp_(max=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, clusters, raised, chosen, learns = ctx.saved_tensors
        gradient = gradient * learns
        logits = (
            raised.exp()
            .mul_(-gradient.sum(1, keepdim=True) / ctx.alpha)
            .scatter_add_(1, chosen, gradient)
        )
        return logits @ clusters, logits.T @ queries, None, None, None


class _ChosenEdges(torch.autograd.Function):
    """log s_cl of the edges that shortlists chose, log_shares[rows, places] + log_beta[rows] [B,
    K], at most 0.

    Few of the R x W edges are chosen. Where they have a gradient g, that of a row's logits is g -
    softmax sum(g): one pass over R x W numbers instead of one for each operation above.

    Args:
        table: logits of all edges [C, kappa], which get the gradient. clusters: [R], its rows that
            log_shares [R, W] is of. log_beta: [R]. rows [B, K]; edges [B, K], rows x W + places.
    """

    @staticmethod
    def forward(
        ctx,
        table: Tensor,
        clusters: Tensor,
        log_shares: Tensor,
        log_beta: Tensor,
        rows: Tensor,
        edges: Tensor,
    ) -> Tensor:
        found = log_shares.take(edges) + log_beta[rows]
        ctx.save_for_backward(clusters, log_shares, rows, edges, found <= 0)
        ctx.shape = table.shape
        return found.clamp_(max=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clusters, log_shares, rows, edges, learns = ctx.saved_tensors
        gradient = (gradient * learns).flatten()
        sums = gradient.new_zeros(len(clusters)).index_add_(0, rows.flatten(), gradient)
        logits = log_shares.exp().mul_(-sums[:, None])
        logits.view(-1).index_add_(0, edges.flatten(), gradient)
        if logits.shape[1] < ctx.shape[1]:
            logits = F.pad(logits, (0, ctx.shape[1] - logits.shape[1]))
        return torch.sparse_coo_tensor(
            clusters[None], logits, ctx.shape, check_invariants=False
        ), *[None] * 5


class EliasModel(nn.Module):
    """encoder, clusters W_C [C, D], labels W_L [L, D'], bias [L, 1], and the edges' logits [C,
    kappa] where learned.

    Args:
        num_labels: rows of W_L; 0 for a model that only encodes and leaves the rest to an index.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        config: EliasConfig,
        num_clusters: int,
        num_labels: int,
        limits: Limits,
    ) -> None:
        super().__init__()
        self.encoder, self.config, self.limits = encoder, config, limits
        width = config.wl_dim or encoder.dim
        self.projection = nn.Linear(encoder.dim, width, bias=False) if config.wl_dim else None
        self.clusters = nn.Parameter(
            torch.randn(num_clusters if num_labels else 0, encoder.dim) / encoder.dim**0.5
        )
        labels = torch.randn(num_labels, width) / width**0.5
        self.labels = DeclaredParameter(labels, Kind(Gradient.FACTORS))
        bias = torch.full((num_labels, 1), config.init_bias)
        self.bias = DeclaredParameter(bias, Kind(Gradient.FACTORS))
        self.edges = None
        if config.name == "elias-2" and num_labels:
            edges = torch.rand(num_clusters, limits.kappa)
            self.edges = DeclaredParameter(edges, Kind(Gradient.ROWS))

    def set_graph(self, graph: Graph) -> None:
        device = self.labels.device
        self._labels = torch.from_numpy(graph.labels).to(device)  # [C, W]
        lengths = torch.from_numpy(graph.lengths).to(device)
        self._outside = torch.arange(graph.labels.shape[1], device=device) >= lengths[:, None]
        self._log_beta = (self.limits.beta / self.limits.kappa * lengths).log().float()
        self._log_values = torch.from_numpy(np.log(np.maximum(graph.values, 1e-30))).to(device)

    def project(self, queries: Tensor) -> Tensor:
        """Embeddings as the label classifiers take them: [B, D']."""
        return queries if self.projection is None else self.projection(queries)

    @torch.no_grad()
    def raised_shares(self, queries: Tensor) -> Tensor:
        """log(alpha softmax(W_C x)), the log cluster scores [B, C] before they are clipped; not
        differentiable."""
        with torch.autocast(queries.device.type, enabled=False):
            return raised_shares(self._scaled(queries) @ self.clusters.T, self.config.alpha)

    def log_cluster_scores(self, queries: Tensor) -> Tensor:
        """log s_c: [B, C]; not differentiable."""
        return self.raised_shares(queries).clamp_(max=0)

    def _scaled(self, queries: Tensor) -> Tensor:
        return queries.float() / (self.config.cluster_tau or self.config.tau)

    def _log_shares(self, clusters: Tensor) -> Tensor:
        """log softmax over the edges of some clusters [R, W], -inf behind the last edge; not
        differentiable."""
        logits = self.edges.detach()[:, : self._labels.shape[1]].index_select(0, clusters)
        return F.log_softmax(
            logits.masked_fill_(self._outside.index_select(0, clusters), -torch.inf), dim=1
        )

    @torch.no_grad()
    def all_log_edges(self) -> np.ndarray:
        """log s_cl [C, W]; stage 1: A's own values."""
        if self.edges is None:
            return self._log_values.cpu().numpy()
        log_shares = self._log_shares(torch.arange(len(self._labels), device=self._labels.device))
        return log_shares.add_(self._log_beta[:, None]).clamp_(max=0).cpu().numpy()

    def shortlist(
        self, queries: Tensor, raised: Tensor, clusters: Tensor
    ) -> tuple[Shortlist, Tensor]:
        """The K labels with the best paths, and log s_c s_cl of each, with its gradient [B, K].

        Args:
            queries: [B, D]; raised: their `raised_shares` [B, C]; clusters: [B, S], -1 for none.
        """
        slots = clusters.clamp(min=0)
        # looking for clusters that several queries share would make the host wait
        if clusters.is_cuda:
            rows = slots.flatten()
            place = torch.arange(slots.numel(), device=slots.device).view_as(slots)
        else:
            rows, place = slots.unique(return_inverse=True)
        with torch.autocast(queries.device.type, enabled=False):
            log_scores = _ChosenClusters.apply(
                self._scaled(queries), self.clusters, raised, slots, self.config.alpha
            )
        if self.edges is None:
            # [R, W]
            log_edges = self._log_values.index_select(0, rows)
        else:
            log_shares = self._log_shares(rows)
            log_beta = self._log_beta[rows]
            log_edges = (log_shares + log_beta[:, None]).clamp_(max=0)
        found = select_labels(
            clusters, log_scores.detach(), self._labels, log_edges, place, self.config.K
        )
        width = log_edges.shape[1]
        slot = torch.div(found.edges, width, rounding_mode="floor")
        # [B, K]
        rows_of = place.gather(1, slot)
        edges = rows_of * width + found.edges % width
        chosen = (
            log_edges.take(edges)
            if self.edges is None
            else _ChosenEdges.apply(self.edges, rows, log_shares, log_beta, rows_of, edges)
        )
        return found, log_scores.gather(1, slot) + chosen

    def index(self) -> GraphIndex:
        """The index on the present weights, without copies on a CPU; float32."""
        clusters, labels, bias = (
            p.detach().cpu().numpy() for p in (self.clusters, self.labels, self.bias)
        )
        return GraphIndex(
            RowStore.of(clusters, "float32"),
            RowStore.of(labels, "float32"),
            bias[:, 0],
            self._labels.cpu().numpy(),
            self.all_log_edges(),
            self.search_settings(),
        )

    def search_settings(self) -> SearchSettings:
        s = self.config
        return SearchSettings(s.alpha, s.cluster_tau or s.tau, s.tau, self.limits.beam, s.K)
