"""ELIAS's search over clusters and edges, and its pool of label classifiers.

    clusters = top clusters of each query [B, S]          log s_c, their scores
    edges    = labels of those clusters [B, S, W]         log s_cl, their weights
    path of label l = max over its edges of s_c s_cl      a label reached twice keeps the best
    shortlist = the K labels with the best paths          equal paths by lower label id

Gupta et al., NeurIPS 2022, arXiv 2210.08410, section 3. Everything works on logarithms: products
are sums, and no gradient is lost where a score underflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numba import njit
from torch import Tensor

from utils.candidate_kernels import combine_given, dot_given
from utils.parameters import OuterGradient
from utils.sparse import entry_rows
from utils.threads import over_threads

CHUNK_FLOATS = 1 << 26  # of label classifiers gathered at once on a GPU
# up to so many times K labels, a product with all of them takes less time than gathering K rows
FEW = 16


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
        return sorted_selection(clusters, log_scores, labels, log_edges, rows, size)
    size = min(size, clusters.shape[1] * labels.shape[1])
    arrays = [
        a.detach().contiguous().numpy() for a in (clusters, log_scores, labels, log_edges, rows)
    ]
    chosen = np.empty((len(clusters), size), np.int64)
    edges = np.empty_like(chosen)
    paths = np.empty((len(clusters), size), np.float32)
    over_threads(
        lambda first, last: hashed_selection(first, last, *arrays, chosen, edges, paths),
        len(clusters),
    )
    return Shortlist(*map(torch.from_numpy, (chosen, edges, paths)))


@njit(nogil=True, cache=True)
def hashed_selection(
    first, last, clusters, log_scores, labels, log_edges, rows, chosen, edges, paths
):
    """`select_labels` of queries [first, last) on a CPU.

    One pass over the edges with a hash table of labels.
    """
    slots, width, size = clusters.shape[1], labels.shape[1], chosen.shape[1]
    capacity = 16
    while capacity < 2 * slots * width:
        capacity *= 2
    mask = capacity - 1
    keys = np.full(capacity, -1, np.int32)
    best, where = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    used = np.empty(slots * width, np.int32)
    values = np.empty(slots * width, np.float32)
    for query in range(first, last):
        count = 0
        for slot in range(slots):
            cluster = clusters[query, slot]
            if cluster < 0:
                continue
            row, score = rows[query, slot], log_scores[query, slot]
            for place in range(width):
                label = labels[cluster, place]
                if label < 0:
                    break
                path = score + log_edges[row, place]
                at = (np.int64(label) * 2654435761 >> 7) & mask
                while keys[at] != -1 and keys[at] != label:
                    at = (at + 1) & mask
                if keys[at] == -1:
                    keys[at], used[count] = label, at
                    count += 1
                elif path <= best[at]:
                    continue
                best[at], where[at] = path, slot * width + place
        for i in range(count):
            values[i] = best[used[i]]
        threshold = -np.inf
        ties = count
        if count > size:
            threshold = np.partition(values[:count], count - size)[count - size]
            ties = size
            for i in range(count):
                ties -= values[i] > threshold
        kept = 0
        for i in range(count):  # used[kept] is behind used[i]: what is kept moves to the front
            if values[i] >= threshold:
                used[kept], used[i] = used[i], used[kept]
                kept += 1
        ids = np.empty(kept, np.int32)
        for i in range(kept):
            ids[i] = keys[used[i]]
        out = 0
        for i in np.argsort(ids):
            at = used[i]
            if best[at] == threshold:
                ties -= 1
                if ties < 0:
                    continue
            chosen[query, out], edges[query, out], paths[query, out] = keys[at], where[at], best[at]
            out += 1
        for i in range(out, size):
            chosen[query, i], edges[query, i], paths[query, i] = -1, 0, -np.inf
        for i in range(count):
            keys[used[i]] = -1


@njit(nogil=True, cache=True)
def given_paths(ids, log_scores, top, log_edges, starts, places):
    """log s_c s_cl of given labels [B, n]: the best over a query's top clusters.

    For a label that none of them reaches the best over all clusters; -inf for id -1 and a label
    without edges.

    Args:
        log_scores: of all clusters [B, C].
        top: the best of them [B, beam].
        log_edges: [C, W].
        starts: of each label's edges among the places [L + 1].
        places: in the flat log_edges, label by label.
    """
    found = np.empty(ids.shape, np.float32)
    width = log_edges.shape[1]
    in_beam = np.zeros(len(log_edges), np.bool_)
    for query in range(len(ids)):
        in_beam[top[query]] = True
        for i in range(ids.shape[1]):
            inside, anywhere = np.float32(-np.inf), np.float32(-np.inf)
            label = ids[query, i]
            for at in range(starts[label], starts[label + 1]) if label >= 0 else range(0):
                cluster = places[at] // width
                path = log_scores[query, cluster] + log_edges[cluster, places[at] % width]
                anywhere = max(anywhere, path)
                if in_beam[cluster]:
                    inside = max(inside, path)
            found[query, i] = anywhere if inside == -np.inf else inside
        in_beam[top[query]] = False
    return found


def sorted_selection(
    clusters: Tensor, log_scores: Tensor, labels: Tensor, log_edges: Tensor, rows: Tensor, size: int
) -> Shortlist:
    """`select_labels` by stable sorts: no host sync, for a GPU."""
    none = torch.iinfo(torch.int32).max
    found = labels[clusters.clamp(min=0)]  # [B, S, W]
    outside = (found < 0) | (clusters < 0)[..., None]
    paths = (log_scores[..., None] + log_edges[rows]).masked_fill(outside, -torch.inf).flatten(1)
    found = found.masked_fill(outside, none).flatten(1)  # [B, n]
    order = paths.sort(dim=1, descending=True, stable=True).indices
    # by label, best path first
    order = order.gather(1, found.gather(1, order).sort(dim=1, stable=True).indices)
    found, paths = found.gather(1, order), paths.gather(1, order)
    repeated = found[:, 1:] == found[:, :-1]
    paths[:, 1:].masked_fill_(repeated, -torch.inf)
    top = paths.sort(dim=1, descending=True, stable=True).indices[:, :size]
    paths = paths.gather(1, top)
    found = found.gather(1, top).masked_fill(paths.isneginf(), none)
    by_label = found.sort(dim=1, stable=True).indices
    top, found, paths = (
        top.gather(1, by_label),
        found.gather(1, by_label),
        paths.gather(1, by_label),
    )
    missing = found == none
    return Shortlist(
        found.masked_fill(missing, -1).long(), order.gather(1, top).masked_fill(missing, 0), paths
    )


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


class _PoolScores(torch.autograd.Function):
    """w_l . x_i for the labels of each query; nothing of the size B x K x D is ever held.

    A CPU reads the rows where they are, a GPU gathers them chunk by chunk; where there are few
    labels, one product with all of them is faster.
    """

    @staticmethod
    def forward(ctx, queries: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(queries, labels)
        ctx.weight = weight
        if _few(labels, weight):
            return (queries @ weight.T).gather(1, labels)
        scores = queries.new_empty(labels.shape)
        (_over_rows if _reads(queries) else _gathered)(dot_given, queries, weight, labels, scores)
        return scores

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        queries, labels = ctx.saved_tensors
        if _few(labels, ctx.weight):
            return (
                gradient.new_zeros(len(labels), len(ctx.weight)).scatter_add_(1, labels, gradient)
                @ ctx.weight,
                None,
                None,
            )
        to_queries = torch.empty_like(queries)
        (_over_rows if _reads(queries) else _gathered)(
            combine_given, gradient, ctx.weight, labels, to_queries
        )
        return to_queries, None, None


def _few(labels: Tensor, weight: Tensor) -> bool:
    return len(weight) <= FEW * labels.shape[1]


def _reads(queries: Tensor) -> bool:
    """Whether kernels read the rows where they are."""
    return queries.device.type == "cpu"


def _over_rows(kernel: Callable, left: Tensor, weight: Tensor, labels: Tensor, out: Tensor) -> None:
    """kernel(left, weight, labels, out) for shares of the queries, one a thread.

    Args:
        kernel: `dot_given` or `combine_given`.
    """
    left, weight, labels, out = (
        a.detach().contiguous().numpy() for a in (left, weight, labels, out)
    )
    over_threads(lambda i, j: kernel(left[i:j], weight, labels[i:j], out[i:j]), len(labels))


def _gathered(kernel: Callable, left: Tensor, weight: Tensor, labels: Tensor, out: Tensor) -> None:
    """The same by copies of the rows, some queries at a time."""
    size = max(1, CHUNK_FLOATS // max(labels.shape[1] * weight.shape[1], 1))
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        # [b, K, D]
        rows = weight[labels[part]]
        if kernel is dot_given:
            torch.bmm(rows, left[part, :, None], out=out[part, :, None])
        else:
            torch.bmm(left[part, None], rows, out=out[part, None])


def pool_scores(queries: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Inner products of queries [B, D] with rows of weight [L, D] at labels [B, K]: [B, K].

    The gradient goes to the queries alone; that of the rows is `pool_gradient` of the scores'
    gradient.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return _PoolScores.apply(queries.float(), weight.detach(), labels)


def pool_gradient(
    labels: Tensor, inside: Tensor, gradient: Tensor, vectors: Tensor
) -> OuterGradient:
    """The gradient of W_L's rows where that of the queries' scores is known.

    Args:
        labels: [B, K].
        inside: which of them are labels [B, K].
        gradient: of the scores [B, K].
        vectors: the queries [B, D].
    """
    points, places = inside.nonzero(as_tuple=True)
    return OuterGradient(labels[points, places], points, gradient[points, places], vectors.detach())


def stored_at(matrix: sp.csr_matrix, labels: Tensor) -> Tensor:
    """Whether a matrix [b, L] has an entry at each label of the shortlists [b, K]; not at -1."""
    num_labels = matrix.shape[1]
    keys = torch.from_numpy(entry_rows(matrix) * num_labels + matrix.indices).to(labels.device)
    if len(keys) == 0:
        return torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(labels), device=labels.device)[:, None]
    wanted = rows * num_labels + labels
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return (keys[place] == wanted) & (labels >= 0)
