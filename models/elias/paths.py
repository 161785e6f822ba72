"""Scores of the clusters and edges that shortlists chose, with gradients that cost one pass over
what was computed to choose them (Gupta et al., NeurIPS 2022, arXiv 2210.08410)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ChosenClusters(torch.autograd.Function):
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


class ChosenEdges(torch.autograd.Function):
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
