"""Scores of a batch against a pool of labels, a chunk at a time, and the gradient they share.

All four losses have a gradient of one form with respect to the scores, [B, L], never built whole:

    G_il = factor_i * weight_il + [l a known positive of i] * point_il

so a loss only says how to get `factor` [B], `point` [P] and a chunk of `weight`; the passes are
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.pool import Exchange, Positives

# a [B, L] matrix up to this size is a single chunk, kept from forward to backward
WHOLE_BYTES = 64 << 20
# of one [B, chunk] matrix beyond that; cpu: about a core's cache
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


def exp_(x: Tensor) -> Tensor:
    """exp in place; what is below about 1e-26 (float32) becomes exactly 0.

    On CPU, exp of an argument out of range takes up to 40 times as long, -inf included.
    """
    if x.is_cuda:
        return x.exp_()
    floor = 0.7 * math.log(torch.finfo(x.dtype).tiny)
    return torch.threshold_(x.clamp_(min=floor).exp_(), math.exp(floor) * 1.001, 0.0)


@dataclass(frozen=True)
class Chunk:
    """A range of the pool's labels, and of the known positives [P] that lie in it."""

    labels: slice  # columns of the pool
    known: slice  # known positives that lie in these columns


@dataclass(frozen=True)
class Pool:
    """What a loss was asked about, apart from the tensors it is differentiated by."""

    formula: Formula
    positives: Positives
    exchange: Exchange
    scale: float  # scores = scale * queries @ labels.T + sharpness * bias
    sharpness: float
    dtype: torch.dtype  # of the arithmetic: float32, or float64 if an input is
    chunks: list[Chunk]
    width: int  # of the widest chunk


# (stream, chunk, reference [B], buffer [B, c]) -> weights of the chunk's labels, in the buffer
Rebuild = Callable[["Stream", Chunk, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """What a loss's forward hands to the shared backward: the letters of the module's formula.

    The weights are either kept or rebuilt, a chunk at a time.
    """

    value: Tensor  # []
    factor: Tensor  # [B]
    point: Tensor  # [P]
    kept: Tensor | None = None  # [B, L] weights, where the loss has them anyway
    reference: Tensor | None = None  # [B], what `rebuild` needs
    rebuild: Rebuild | None = None


class Formula(Protocol):
    """A loss in the module's form: what it must say, once for each batch."""

    def forward(self, stream: Stream) -> Parts:
        """Pass over the stream's chunks for the loss and the parts of its gradient."""


class Stream:
    """The score matrix [B, L] as a sequence of chunks written into reused buffers."""

    def __init__(
        self,
        pool: Pool,
        queries: Tensor,
        labels: Tensor,
        bias: Tensor | None,
    ) -> None:
        self.pool = pool
        self.positives = pool.positives
        self.exchange = pool.exchange
        self.chunks = pool.chunks
        self.queries = queries.to(pool.dtype) * pool.scale  # [B, D]
        self.labels = labels  # [L, D]
        self.bias = bias  # [L]
        self.weights = pool.positives.weights.to(pool.dtype)  # [P]

    def empty(self, *shape: int) -> Tensor:
        """A tensor on the queries' device, in the arithmetic's precision."""
        return self.queries.new_empty(shape)

    def buffer(self) -> Tensor:
        """Room for the scores of the widest chunk; `view` gives it a chunk's shape."""
        return self.empty(len(self.queries) * self.pool.width)

    def view(self, buffer: Tensor, chunk: Chunk) -> Tensor:
        """The front of a buffer as a contiguous [B, c]."""
        width = chunk.labels.stop - chunk.labels.start
        rows = len(self.queries)
        return buffer[: rows * width].view(rows, width)

    def known(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Coordinates of the chunk's known positives inside the chunk."""
        rows = self.positives.rows[chunk.known]
        cols = self.positives.cols[chunk.known] - chunk.labels.start
        return rows, cols

    def scores(self, chunk: Chunk, out: Tensor) -> Tensor:
        """Scores of a chunk's labels, written into `out` [B, c]."""
        labels = self.labels[chunk.labels].to(self.pool.dtype)
        if self.bias is None:
            return torch.mm(self.queries, labels.T, out=out)
        bias = self.bias[chunk.labels].to(self.pool.dtype)
        return torch.addmm(bias, self.queries, labels.T, beta=self.pool.sharpness, out=out)

    def masked(
        self,
        chunk: Chunk,
        hidden: Tensor,
        out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Scores of a chunk with -inf at `hidden` [P] known positives, and their own scores."""
        scores = self.scores(chunk, out)
        index = self.known(chunk)
        own = scores[index]
        scores[index] = own.masked_fill(hidden[chunk.known], -torch.inf)
        return scores, own

    def per_row(self, values: Tensor) -> Tensor:
        """Sum values [P] of this process's known positives over each row. -> [B]"""
        return values.new_zeros(len(self.queries)).index_add_(0, self.positives.rows, values)

    def gradients(
        self,
        weights: Callable[[Chunk, Tensor], Tensor],
        factor: Tensor,
        point: Tensor,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of queries, labels and bias, of those that are needed.

        weights: (chunk, buffer) -> [B, c], perhaps inside the buffer.
        """
        queries = torch.zeros_like(self.queries) if needs[0] else None
        labels = self.labels.new_empty(self.labels.shape) if needs[1] else None
        bias = None
        if needs[2] and self.bias is not None:
            bias = self.bias.new_empty(self.bias.shape)
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
        return queries, labels, bias


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, labels: Tensor, bias: Tensor | None, pool: Pool
    ) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            parts = pool.formula.forward(Stream(pool, queries, labels, bias))
        ctx.pool = pool
        ctx.rebuild = parts.rebuild
        # Saved, not kept on ctx: freed by backward even while the caller still holds the loss.
        ctx.save_for_backward(
            queries, labels, bias, parts.factor, parts.point, parts.reference, parts.kept
        )
        return parts.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, labels, bias, factor, point, reference, kept = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            stream = Stream(ctx.pool, queries, labels, bias)

            def weights(chunk: Chunk, buffer: Tensor) -> Tensor:
                if kept is not None:
                    return kept[:, chunk.labels]
                return ctx.rebuild(stream, chunk, reference, stream.view(buffer, chunk))

            of_queries, of_labels, of_bias = stream.gradients(
                weights, factor * grad_output, point * grad_output, ctx.needs_input_grad
            )
        if of_queries is not None:
            of_queries = of_queries.to(queries.dtype)
        return of_queries, of_labels, of_bias, None


def check_shapes(
    queries: Tensor, labels: Tensor, bias: Tensor | None, positives: Positives
) -> None:
    """Raise ValueError unless queries, labels, bias and positives are of one batch and pool."""
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


def cut(
    positives: Positives,
    num_labels: int,
    width: int,
) -> list[Chunk]:
    """Chunks of at most `width` labels, with their ranges of known positives."""
    edges = [*range(0, num_labels, width), num_labels]
    known = positives.before(edges)
    return [
        Chunk(slice(edges[i], edges[i + 1]), slice(known[i], known[i + 1]))
        for i in range(len(edges) - 1)
    ]


def chunk_width(
    num_queries: int,
    num_labels: int,
    dtype: torch.dtype,
    device: str,
) -> int:
    """Labels at a time: all where their scores [B, L] are small, else a buffer's worth."""
    column = max(1, num_queries) * dtype.itemsize
    if column * num_labels <= WHOLE_BYTES:
        return num_labels
    return CHUNK_BYTES.get(device, 64 << 20) // column


def streamed_loss(
    formula: Formula,
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [L, D]
    positives: Positives,
    bias: Tensor | None,  # [L]
    tau: float,
    exchange: Exchange,
    chunk: int | None,
    sharpness: float = 1.0,
) -> Tensor:
    """The value of a formula, differentiable by queries, labels and bias. -> []

    chunk: labels at a time; None: by size. sharpness: multiplies the scores, alpha of soft top-k.
    """
    check_shapes(queries, labels, bias, positives)
    if not tau > 0 or not sharpness > 0 or (chunk is not None and chunk < 1):
        raise ValueError(
            f"expected tau > 0, alpha > 0 and chunk >= 1, got {tau}, {sharpness} and {chunk}"
        )
    dtype = torch.promote_types(torch.promote_types(queries.dtype, labels.dtype), torch.float32)
    if chunk is None:
        chunk = chunk_width(len(queries), len(labels), dtype, queries.device.type)
    width = max(1, min(chunk, len(labels)))
    pool = Pool(
        formula,
        positives,
        exchange,
        scale=sharpness / tau,
        sharpness=sharpness,
        dtype=dtype,
        chunks=cut(positives, len(labels), width),
        width=width,
    )
    return _Streamed.apply(queries, labels, bias, pool)
