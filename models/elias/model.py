"""The parameters of ELIAS and what a training step computes with them (Gupta et al., NeurIPS 2022,
arXiv 2210.08410).

    s_c = clip(alpha softmax(W_C x)_c, 0, 1)      s_cl = clip(beta softmax over the edges of c, 0,
        1)

Edges of a cluster with fewer than kappa labels get a beta in proportion: the clip has no gradient
where it bites, and with beta of at least the number of edges every weight would be 1.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elias.graph import Graph
from models.elias.index import GraphIndex, SearchSettings, raised_shares
from models.elias.options import EliasConfig, Limits
from models.elias.paths import ChosenClusters, ChosenEdges
from models.elias.search import Shortlist, select_labels
from models.encoders.encoder import TextEncoder
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.row_store import RowStore


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
            log_scores = ChosenClusters.apply(
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
            else ChosenEdges.apply(self.edges, rows, log_shares, log_beta, rows_of, edges)
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
