"""Scores of the labels on ELIAS's shortlists, and their gradients.

    scores = pool_scores(queries, weight, labels)                   # w_l . x_i [B, K]
    weight.factors = pool_gradient(labels, inside, gradient, queries)

Nothing of the size B x K x D is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from utils.candidate_kernels import combine_given, dot_given
from utils.parameters import OuterGradient
from utils.sparse import entry_rows
from utils.threads import over_threads

CHUNK_FLOATS = 1 << 26  # of label classifiers gathered at once on a GPU
FEW = 16  # times K labels at most: a product with all takes less time than gathering K rows


class _PoolScores(torch.autograd.Function):
    """w_l . x_i for the labels of each query; nothing of the size B x K x D is ever held.

    A CPU reads the rows where they are, a GPU gathers them chunk by chunk; where there are few
    labels, one product with all of them is faster.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        weight: Tensor,
        labels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(queries, labels)
        ctx.weight = weight
        if _few(labels, weight):
            return (queries @ weight.T).gather(1, labels)
        scores = queries.new_empty(labels.shape)
        _run(dot_given, queries, weight, labels, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        queries, labels = ctx.saved_tensors
        if _few(labels, ctx.weight):
            to_scores = gradient.new_zeros(len(labels), len(ctx.weight))  # of all labels [B, L]
            return to_scores.scatter_add_(1, labels, gradient) @ ctx.weight, None, None
        to_queries = torch.empty_like(queries)  # [B, D]
        _run(combine_given, gradient, ctx.weight, labels, to_queries)
        return to_queries, None, None


def _few(labels: Tensor, weight: Tensor) -> bool:
    return len(weight) <= FEW * labels.shape[1]


def _reads(queries: Tensor) -> bool:
    """Whether kernels read the rows where they are."""
    return queries.device.type == "cpu"


def _run(
    kernel: Callable,
    left: Tensor,
    weight: Tensor,
    labels: Tensor,
    out: Tensor,
) -> None:
    """Run kernel(left, weight, labels, out) where the tensors are."""
    if _reads(left):
        _over_rows(kernel, left, weight, labels, out)
    else:
        _gathered(kernel, left, weight, labels, out)


def _over_rows(
    kernel: Callable,
    left: Tensor,
    weight: Tensor,
    labels: Tensor,
    out: Tensor,
) -> None:
    """kernel(left, weight, labels, out) for shares of the queries, one a thread.

    Args:
        kernel: `dot_given` or `combine_given`.
    """
    rows = weight.detach().contiguous().numpy()
    ins = left.detach().contiguous().numpy()
    ids = labels.contiguous().numpy()
    outs = out.detach().numpy()  # written in place

    def work(first: int, last: int) -> None:
        kernel(ins[first:last], rows, ids[first:last], outs[first:last])

    over_threads(work, len(labels))


def _gathered(
    kernel: Callable,
    left: Tensor,
    weight: Tensor,
    labels: Tensor,
    out: Tensor,
) -> None:
    """The same by copies of the rows, some queries at a time."""
    size = max(1, CHUNK_FLOATS // max(labels.shape[1] * weight.shape[1], 1))
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        rows = weight[labels[part]]  # [b, K, D]
        if kernel is dot_given:
            torch.bmm(rows, left[part, :, None], out=out[part, :, None])
        else:
            torch.bmm(left[part, None], rows, out=out[part, None])


def pool_scores(
    queries: Tensor,
    weight: Tensor,
    labels: Tensor,
) -> Tensor:
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
    points = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    rows = labels.masked_fill(~inside, -1)
    return OuterGradient(rows.flatten(), points.flatten(), gradient.flatten(), vectors.detach())


@dataclass(frozen=True)
class Pairs:
    """Entries of a matrix [b, L], looked up where a step is computed.

    Attributes:
        keys: row x L + column of each entry, ascending [nnz] int64.
        num_labels: L.
    """

    keys: Tensor
    num_labels: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Pairs:
        """The entries of a matrix whose rows are sorted."""
        num_labels = matrix.shape[1]
        keys = entry_rows(matrix).astype(np.int64) * num_labels + matrix.indices
        return cls(torch.from_numpy(keys), num_labels)

    def at(self, labels: Tensor) -> Tensor:
        """Whether there is an entry at each label of the shortlists [b, K]; not at -1."""
        if len(self.keys) == 0:
            return torch.zeros_like(labels, dtype=torch.bool)
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        wanted = rows * self.num_labels + labels
        place = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return (self.keys[place] == wanted) & (labels >= 0)
