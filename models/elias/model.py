"""The parameters of ELIAS and what a training step computes with them.

    s_c = clip(alpha softmax(W_C x)_c, 0, 1)
    s_cl = clip(beta softmax over the edges of c, 0, 1)

Gupta et al., NeurIPS 2022, arXiv 2210.08410. Edges of a cluster with fewer than kappa labels get a
beta in proportion: the clip has no gradient where it bites, and with beta of at least the number of
edges every weight would be 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elias.formulas import raised_shares
from models.elias.graph import Graph
from models.elias.index import GraphIndex
from models.elias.options import EliasConfig, Limits, SearchSettings
from models.elias.paths import ChosenClusters, ChosenEdges
from models.elias.search import Shortlist, select_labels
from models.encoders.text_encoder import TextEncoder
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.row_store import RowStore


@dataclass(frozen=True)
class Edges:
    """The graph A as a step reads it, on the device of the parameters.

    Attributes:
        labels: [C, W] int32, -1 behind the last of a cluster.
        outside: [C, W], whether a place is behind the last.
        log_beta: of each cluster [C].
        log_values: of A's own edges [C, W].
    """

    labels: Tensor
    outside: Tensor
    log_beta: Tensor
    log_values: Tensor

    @classmethod
    def of(
        cls,
        graph: Graph,
        limits: Limits,
        device: torch.device,
    ) -> Edges:
        labels = torch.from_numpy(graph.labels).to(device)
        lengths = torch.from_numpy(graph.lengths).to(device)
        outside = torch.arange(graph.labels.shape[1], device=device) >= lengths[:, None]
        log_beta = (limits.beta / limits.kappa * lengths).log().float()
        log_values = torch.from_numpy(np.log(np.maximum(graph.values, 1e-30))).to(device)
        return cls(labels, outside, log_beta, log_values)


class EliasModel(nn.Module):
    """All that is trained.

    Attributes:
        clusters: W_C [C, D].
        labels: W_L [L, D'].
        bias: [L, 1].
        edges: their logits [C, kappa]; None where the graph stays as it is.
        projection: of embeddings for the label classifiers, D to D'; None where D' = D.
    """

    def __init__(
        self, encoder: TextEncoder, options: EliasConfig, limits: Limits, shape: tuple[int, int]
    ) -> None:
        """Make all parameters, random.

        Args:
            shape: clusters and labels (C, L).
        """
        super().__init__()
        num_clusters, num_labels = shape
        self.encoder = encoder
        self.options = options
        self.limits = limits
        width = options.wl_dim or encoder.dim
        self.projection = None
        if options.wl_dim:
            self.projection = nn.Linear(encoder.dim, width, bias=False)
        self.clusters = nn.Parameter(torch.randn(num_clusters, encoder.dim) / encoder.dim**0.5)
        labels = torch.randn(num_labels, width) / width**0.5
        self.labels = DeclaredParameter(labels, Kind(Gradient.FACTORS))
        bias = torch.full((num_labels, 1), options.init_bias)
        self.bias = DeclaredParameter(bias, Kind(Gradient.FACTORS))
        self.edges = None
        if options.learns_edges:
            edges = torch.rand(num_clusters, limits.kappa)
            self.edges = DeclaredParameter(edges, Kind(Gradient.ROWS))

    def project(self, queries: Tensor) -> Tensor:
        """Embeddings as the label classifiers take them: [B, D']."""
        return queries if self.projection is None else self.projection(queries)

    @torch.no_grad()
    def raised_shares(self, queries: Tensor) -> Tensor:
        """log(alpha softmax(W_C x)) [B, C], not differentiable: log s_c before it is clipped."""
        with torch.autocast(queries.device.type, enabled=False):
            return raised_shares(self._scaled(queries) @ self.clusters.T, self.options.alpha)

    def log_cluster_scores(self, queries: Tensor) -> Tensor:
        """log s_c: [B, C]; not differentiable."""
        return self.raised_shares(queries).clamp_(max=0)

    def _scaled(self, queries: Tensor) -> Tensor:
        return queries.float() / (self.options.cluster_tau or self.options.tau)

    def _log_shares(self, graph: Edges, clusters: Tensor) -> Tensor:
        """log softmax over the edges of some clusters [R, W], -inf behind the last.

        Not differentiable.
        """
        assert self.edges is not None, "edges that are not learned have A's own values"
        logits = self.edges.detach()[:, : graph.labels.shape[1]].index_select(0, clusters)
        outside = graph.outside.index_select(0, clusters)
        return F.log_softmax(logits.masked_fill_(outside, -torch.inf), dim=1)

    def all_log_edges(self, graph: Edges) -> np.ndarray:
        """log s_cl [C, W]; where edges are not learned A's own values."""
        return self._all_log_edges(graph).cpu().numpy()

    @torch.no_grad()
    def _all_log_edges(self, graph: Edges) -> Tensor:
        if self.edges is None:
            return graph.log_values
        every = torch.arange(len(graph.labels), device=graph.labels.device)
        log_shares = self._log_shares(graph, every)
        return log_shares.add_(graph.log_beta[:, None]).clamp_(max=0)

    def best_paths(
        self, graph: Edges, queries: Tensor, raised: Tensor, clusters: Tensor
    ) -> tuple[Shortlist, Tensor]:
        """The K labels with the best paths, and log s_c s_cl of each, with its gradient [B, K].

        Args:
            queries: [B, D].
            raised: their `raised_shares` [B, C].
            clusters: [B, S], -1 for none.
        """
        slots = clusters.clamp(min=0)
        # looking for clusters that several queries share would make the host wait
        if clusters.is_cuda:
            rows = slots.flatten()  # [R]
            place = torch.arange(slots.numel(), device=slots.device).view_as(slots)
        else:
            rows, place = slots.unique(return_inverse=True)
        with torch.autocast(queries.device.type, enabled=False):
            log_scores = ChosenClusters.apply(
                self._scaled(queries), self.clusters, raised, slots, self.options.alpha
            )  # [B, S]
        if self.edges is None:
            log_edges = graph.log_values.index_select(0, rows)  # [R, W]
        else:
            log_shares = self._log_shares(graph, rows)  # [R, W]
            log_beta = graph.log_beta[rows]  # [R]
            log_edges = (log_shares + log_beta[:, None]).clamp_(max=0)
        shortlist = select_labels(
            clusters, log_scores.detach(), graph.labels, log_edges, place, size=self.options.K
        )
        width = log_edges.shape[1]
        slot = torch.div(shortlist.edges, width, rounding_mode="floor")  # [B, K]
        rows_of = place.gather(1, slot)  # [B, K]
        edges = rows_of * width + shortlist.edges % width  # [B, K]
        if self.edges is None:
            chosen = log_edges.take(edges)
        else:
            chosen = ChosenEdges.apply(self.edges, rows, log_shares, log_beta, rows_of, edges)
        return shortlist, log_scores.gather(1, slot) + chosen

    def index(self, graph: Edges) -> GraphIndex:
        """The index on the present weights, without copies of them where they are; float32."""
        on_device = [
            self.clusters.detach(),
            self.labels.detach(),
            self.bias.detach()[:, 0],
            graph.labels,
            self._all_log_edges(graph),
        ]
        clusters, labels, bias, edges, log_edges = (tensor.cpu().numpy() for tensor in on_device)
        return GraphIndex(
            RowStore.of(clusters, "float32"),
            RowStore.of(labels, "float32"),
            bias,
            edges,
            log_edges,
            SearchSettings.of(self.options, self.limits),
            on_device,
        )
