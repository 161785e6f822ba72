"""Scores of a batch against a pool of labels, a chunk of labels at a time, and the gradient they
share.

All four losses have a gradient of one form with respect to the scores,

    # [B, L], never built whole
    G_il = factor_i * weight_il + [l a known positive of i] * point_il

so a loss only says how to get `factor` [B], `point` [P] and a chunk of `weight`; the passes are
here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from losses.pool import Exchange, Positives

# a [B, L] matrix up to this size is a single chunk, kept from forward to backward
WHOLE_BYTES = 64 << 20
CHUNK_BYTES = {
    "cpu": 8 << 20,
    "cuda": 64 << 20,
}  # of one [B, chunk] matrix beyond that; cpu: about a core's cache


def exp_(x: Tensor) -> Tensor:
    """exp in place; what is below about 1e-26 (float32) becomes exactly 0.

    On CPU, exp of an argument out of range takes up to 40 times as long, -inf included.
    """
    if x.is_cuda:
        return x.exp_()
    floor = 0.7 * math.log(torch.finfo(x.dtype).tiny)
    return functional.threshold_(x.clamp_(min=floor).exp_(), math.exp(floor) * 1.001, 0.0)


@dataclass(frozen=True)
class Chunk:
    labels: slice  # columns of the pool
    known: slice  # known positives that lie in these columns


@dataclass(frozen=True)
class Pool:
    """What a loss was asked about, apart from the tensors it is differentiated by."""

    positives: Positives
    exchange: Exchange
    scale: float  # scores = scale * queries @ labels.T + sharpness * bias
    sharpness: float
    dtype: torch.dtype  # of the arithmetic: float32, or float64 if an input is
    chunks: list  # of Chunk
    width: int  # of the widest chunk


@dataclass
class Parts:
    """What a loss's forward hands to the shared backward: the letters of the module's formula."""

    value: Tensor  # []
    factor: Tensor  # [B]
    point: Tensor  # [P]
    reference: Tensor | None = None  # [B], what `weights` needs to rebuild a chunk
    kept: Tensor | None = None  # [B, L] weights, when the loss has them anyway


class Stream:
    """The score matrix [B, L] as a sequence of chunks written into reused buffers."""

    def __init__(self, pool: Pool, queries: Tensor, labels: Tensor, bias: Tensor | None):
        self.pool = pool
        self.positives = pool.positives
        self.exchange = pool.exchange
        self.chunks = pool.chunks
        self.queries = queries.to(pool.dtype) * pool.scale  # [B, D]
        self.labels, self.bias = labels, bias
        self.weights = pool.positives.weights.to(pool.dtype)  # [P]

    def empty(self, *shape, **options) -> Tensor:
        return self.queries.new_empty(shape, **options)

    def buffer(self) -> Tensor:
        return self.empty(len(self.queries) * self.pool.width)

    def view(self, buffer: Tensor, chunk: Chunk) -> Tensor:
        width = chunk.labels.stop - chunk.labels.start
        # [B, c], contiguous
        return buffer[: len(self.queries) * width].view(len(self.queries), width)

    def known(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Coordinates of the chunk's known positives inside the chunk."""
        return self.positives.rows[chunk.known], self.positives.cols[
            chunk.known
        ] - chunk.labels.start

    def scores(self, chunk: Chunk, out: Tensor) -> Tensor:
        labels = self.labels[chunk.labels].to(self.pool.dtype)
        if self.bias is None:
            return torch.mm(self.queries, labels.T, out=out)
        bias = self.bias[chunk.labels].to(self.pool.dtype)
        return torch.addmm(bias, self.queries, labels.T, beta=self.pool.sharpness, out=out)

    def masked(self, chunk: Chunk, hidden: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of a chunk with -inf at `hidden` [P] known positives, and their own scores."""
        scores = self.scores(chunk, out)
        index = self.known(chunk)
        own = scores[index]
        scores[index] = own.masked_fill(hidden[chunk.known], -torch.inf)
        return scores, own

    def per_row(self, values: Tensor) -> Tensor:
        """Sum values [P] of this process's known positives over each row. -> [B]"""
        return values.new_zeros(len(self.queries)).index_add_(0, self.positives.rows, values)

    def gradients(self, weights, factor: Tensor, point: Tensor, needs) -> list[Tensor | None]:
        """Gradients of queries, labels, bias. weights(chunk, buffer) -> [B, c], perhaps inside the
        buffer."""
        queries = torch.zeros_like(self.queries) if needs[0] else None
        labels = self.labels.new_empty(self.labels.shape) if needs[1] else None
        bias = self.bias.new_empty(self.bias.shape) if needs[2] else None
        buffer = self.buffer()
        for chunk in self.chunks:
            gradient = self.view(buffer, chunk)
            index = self.known(chunk)
            torch.mul(weights(chunk, buffer), factor[:, None], out=gradient)  # G: [B, c]
            gradient[index] = gradient[index] + point[chunk.known]  # coordinates are unique
            if queries is not None:
                queries.addmm_(
                    gradient, self.labels[chunk.labels].to(queries.dtype), alpha=self.pool.scale
                )
            if labels is not None and labels.dtype == gradient.dtype:
                torch.mm(gradient.T, self.queries, out=labels[chunk.labels])
            elif labels is not None:
                labels[chunk.labels] = gradient.T @ self.queries
            if bias is not None:
                bias[chunk.labels] = gradient.sum(0) * self.pool.sharpness
        return [queries, labels, bias]


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, labels, bias, formula, pool):
        with torch.autocast(queries.device.type, enabled=False):
            parts = formula.forward(Stream(pool, queries, labels, bias))
        ctx.formula, ctx.pool = formula, pool
        # Saved, not kept on ctx: freed by backward even while the caller still holds the loss.
        ctx.save_for_backward(
            queries, labels, bias, parts.factor, parts.point, parts.reference, parts.kept
        )
        return parts.value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        queries, labels, bias, factor, point, reference, kept = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            stream = Stream(ctx.pool, queries, labels, bias)

            def weights(chunk, buffer):
                if kept is not None:
                    return kept[:, chunk.labels]
                return ctx.formula.weights(stream, chunk, reference, stream.view(buffer, chunk))

            grads = stream.gradients(
                weights, factor * grad_output, point * grad_output, ctx.needs_input_grad
            )
        grads[0] = None if grads[0] is None else grads[0].to(queries.dtype)
        return (*grads, None, None)


def check_shapes(
    queries: Tensor, labels: Tensor, bias: Tensor | None, positives: Positives
) -> None:
    if queries.dim() != 2 or labels.dim() != 2 or queries.shape[1] != labels.shape[1]:
        got = f"{tuple(queries.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected queries [B, D] and labels [L, D] with one D, got {got}")
    if bias is not None and bias.shape != labels.shape[:1]:
        raise ValueError(
            f"expected bias of shape [{len(labels)}], one per label, got {tuple(bias.shape)}"
        )
    if len(positives.per_row) != len(queries):
        raise ValueError(
            f"expected positives.per_row of shape [{len(queries)}], got "
            f"{tuple(positives.per_row.shape)}"
        )


def cut(positives: Positives, num_labels: int, chunk: int) -> list[Chunk]:
    """Chunks of labels with their ranges of known positives; the only host sync of a loss that
    streams."""
    edges = [*range(0, num_labels, chunk), num_labels]
    known = torch.searchsorted(
        positives.cols, torch.tensor(edges, device=positives.cols.device)
    ).tolist()
    return [
        Chunk(slice(*edges[i : i + 2]), slice(*known[i : i + 2])) for i in range(len(edges) - 1)
    ]


def streamed_loss(
    formula, queries, labels, positives, bias, tau, exchange, chunk, sharpness=1.0
) -> Tensor:
    """Value of formula, differentiable by queries, labels, bias. chunk: labels at a time; None: by
    size."""
    check_shapes(queries, labels, bias, positives)
    if not tau > 0 or not sharpness > 0 or (chunk is not None and chunk < 1):
        raise ValueError(
            f"expected tau > 0, alpha > 0 and chunk >= 1, got {tau}, {sharpness} and {chunk}"
        )
    dtype = torch.promote_types(torch.promote_types(queries.dtype, labels.dtype), torch.float32)
    if chunk is None:
        column = max(1, len(queries)) * dtype.itemsize
        whole = column * len(labels) <= WHOLE_BYTES
        chunk = len(labels) if whole else CHUNK_BYTES.get(queries.device.type, 64 << 20) // column
    chunk = max(1, min(chunk, len(labels)))
    chunks = cut(positives, len(labels), chunk)
    pool = Pool(positives, exchange, sharpness / tau, sharpness, dtype, chunks, chunk)
    return _Streamed.apply(queries, labels, bias, formula, pool)
