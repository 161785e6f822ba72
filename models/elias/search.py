"""ELIAS's search over clusters and edges, and its pool of label classifiers.

    clusters = top clusters of each query [B, S]          log s_c, their scores
    edges    = labels of those clusters [B, S, W]         log s_cl, their weights
    path of label l = max over its edges of s_c s_cl      a label reached twice keeps the best
    shortlist = the K labels with the best paths          equal paths by lower label id

Gupta et al., NeurIPS 2022, arXiv 2210.08410, section 3. Everything works on logarithms: products
are sums, and no gradient is lost where a score underflows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.elias.kernels import hashed_selection
from utils.threads import over_threads


class Shortlist(NamedTuple):
    """The K labels with the best paths of each query.

    Attributes:
        labels: [B, K] int64, ascending, -1 behind the last.
        edges: slot x W + place of the best edge [B, K] int64.
        log_paths: [B, K], -inf where there is no label.
    """

    labels: Tensor
    edges: Tensor
    log_paths: Tensor


def select_labels(
    clusters: Tensor,
    log_scores: Tensor,
    labels: Tensor,
    log_edges: Tensor,
    rows: Tensor,
    *,
    size: int,
) -> Shortlist:
    """The `size` labels with the best paths of each query; not differentiable.

    Args:
        clusters: ids [B, S], -1 for none.
        log_scores: [B, S].
        labels: ids of the clusters' edges [C, W] int32, -1 behind the last.
        log_edges: [R, W].
        rows: of log_edges, which a slot uses [B, S].
    """
    if clusters.is_cuda:
        return sorted_selection(clusters, log_scores, labels, log_edges, rows, size=size)
    size = min(size, clusters.shape[1] * labels.shape[1])
    inputs = (clusters, log_scores, labels, log_edges, rows)
    arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
    chosen = np.empty((len(clusters), size), np.int64)
    edges = np.empty_like(chosen)
    paths = np.empty((len(clusters), size), np.float32)
    over_threads(
        lambda first, last: hashed_selection(first, last, *arrays, chosen, edges, paths),
        len(clusters),
    )
    return Shortlist(torch.from_numpy(chosen), torch.from_numpy(edges), torch.from_numpy(paths))


def sorted_selection(
    clusters: Tensor,
    log_scores: Tensor,
    labels: Tensor,
    log_edges: Tensor,
    rows: Tensor,
    *,
    size: int,
) -> Shortlist:
    """`select_labels` by stable sorts: no host sync, for a GPU."""
    none = torch.iinfo(torch.int32).max
    ids = labels[clusters.clamp(min=0)]  # [B, S, W]
    outside = (ids < 0) | (clusters < 0)[..., None]
    paths = (log_scores[..., None] + log_edges[rows]).masked_fill(outside, -torch.inf)
    paths = paths.flatten(1)  # [B, n]
    ids = ids.masked_fill(outside, none).flatten(1)  # [B, n]

    # by label, best path first: of a label that stands twice the first is kept
    order = paths.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, ids.gather(1, order).sort(dim=1, stable=True).indices)
    ids = ids.gather(1, order)
    paths = paths.gather(1, order)
    repeated = ids[:, 1:] == ids[:, :-1]
    paths[:, 1:].masked_fill_(repeated, -torch.inf)

    # the best of them, in the order of their ids
    top = paths.sort(dim=1, descending=True, stable=True).indices[:, :size]
    paths = paths.gather(1, top)
    ids = ids.gather(1, top).masked_fill(paths.isneginf(), none)
    by_label = ids.sort(dim=1, stable=True).indices
    top = top.gather(1, by_label)
    ids = ids.gather(1, by_label)
    paths = paths.gather(1, by_label)
    missing = ids == none
    edges = order.gather(1, top).masked_fill(missing, 0)
    return Shortlist(ids.masked_fill(missing, -1).long(), edges, paths)


def forced_clusters(
    raised: Tensor, beam: int, parents: Tensor, fill: Tensor, noise: Tensor
) -> Tensor:
    """Teacher forcing: the clusters of a training query's shortlist [B, S], -1 where there is none.

    The top `beam` clusters and the parents of the query's positives; clusters that stand twice are
    replaced by random ones; where there are more than S, S of them are drawn by score (log score +
    Gumbel noise, the largest S).

    Args:
        raised: log cluster scores [B, C], before or after they are clipped at 0.
        parents: clusters of the positives [B, P], -1 for none.
        fill: random clusters [B, S].
        noise: Gumbel noise [B, beam + P + S]; the same draws whatever the number of processes.
    """
    size = fill.shape[1]
    top = raised.topk(beam, dim=1).indices
    clusters = torch.cat([top, parents, fill], 1)
    keys = raised.gather(1, clusters.clamp(min=0)).clamp_(max=0) + noise
    keys[:, -size:] -= 1e6  # random clusters come last, whatever their scores
    keys.masked_fill_(_stands_before(clusters) | (clusters < 0), -torch.inf)
    keys, places = keys.topk(size, dim=1)
    return clusters.gather(1, places).masked_fill_(keys.isneginf(), -1)


def _stands_before(ids: Tensor) -> Tensor:
    """Whether the same id stands earlier in its row: a mask like ids [B, n]."""
    ordered, order = ids.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeated).scatter_(1, order, repeated)
