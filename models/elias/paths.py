"""Scores of the clusters and edges that shortlists chose, with their gradients.

They cost one pass over what was computed to choose them (Gupta et al., NeurIPS 2022, arXiv
2210.08410).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ChosenClusters(torch.autograd.Function):
    """log s_c = min(log(alpha softmax(W_C x)_c), 0) of the clusters that are searched.

    Args:
        queries: x [B, D].
        clusters: W_C [C, D].
        raised: log(alpha softmax(W_C x)) [B, C], known already.
        chosen: clusters that are searched [B, S].
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, clusters: Tensor, raised: Tensor, chosen: Tensor, alpha: float
    ) -> Tensor:
        scores = raised.gather(1, chosen)  # [B, S]
        ctx.save_for_backward(queries, clusters, raised, chosen, scores <= 0)
        ctx.alpha = alpha
        return scores.clamp_(max=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradient of alpha softmax back to W_C and the queries, where no clip bites."""
        queries, clusters, raised, chosen, learns = ctx.saved_tensors
        gradient = gradient * learns  # [B, S] no gradient where the clip bites
        logits = raised.exp()  # [B, C] alpha softmax
        logits.mul_(-gradient.sum(1, keepdim=True) / ctx.alpha).scatter_add_(1, chosen, gradient)
        return logits @ clusters, logits.T @ queries, None, None, None


class ChosenEdges(torch.autograd.Function):
    """log s_cl = min(log_shares[rows, places] + log_beta[rows], 0) of chosen edges [B, K].

    Few of the R x W edges are chosen. Where they have a gradient g, that of a row's logits is g -
    softmax sum(g): one pass over R x W numbers instead of one for each operation above.

    Args:
        table: logits of all edges [C, kappa], which get the gradient.
        clusters: of the table's rows that log_shares is of [R].
        log_shares: [R, W].
        log_beta: [R].
        rows: of log_shares [B, K].
        edges: rows x W + places [B, K].
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        clusters: Tensor,
        log_shares: Tensor,
        log_beta: Tensor,
        rows: Tensor,
        edges: Tensor,
    ) -> Tensor:
        """Look up what was computed for the search."""
        weights = log_shares.take(edges) + log_beta[rows]  # [B, K]
        ctx.save_for_backward(clusters, log_shares, rows, edges, weights <= 0)
        ctx.shape = table.shape
        return weights.clamp_(max=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Give the table a row-sparse gradient, of the rows that were searched."""
        clusters, log_shares, rows, edges, learns = ctx.saved_tensors
        gradient = (gradient * learns).flatten()  # [B K]
        sums = gradient.new_zeros(len(clusters)).index_add_(0, rows.flatten(), gradient)  # [R]
        logits = log_shares.exp().mul_(-sums[:, None])  # [R, W]
        logits.view(-1).index_add_(0, edges.flatten(), gradient)
        if logits.shape[1] < ctx.shape[1]:
            logits = F.pad(logits, (0, ctx.shape[1] - logits.shape[1]))
        to_table = torch.sparse_coo_tensor(
            clusters[None], logits, ctx.shape, check_invariants=False
        )
        return to_table, None, None, None, None, None
