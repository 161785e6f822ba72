"""Softmax and decoupled softmax over a pool of labels (DEXML: Gupta et al., 2310.10636)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from losses.pool import Exchange, Positives
from losses.stream import Chunk, Parts, Stream, exp_, streamed_loss


@dataclass(frozen=True)
class Exponentials:
    """The exponentials of each row's scores s, relative to this process's row maxima m."""

    margins: Tensor  # [P] logsumexp_i - s_ij of the known positives
    maximum: Tensor  # [B] m
    scale: Tensor  # [B] exp(m - logsumexp)
    kept: Tensor | None  # [B, L] exp(s - m), where the pool is a single chunk


def exponentials(stream: Stream, hidden: Tensor) -> Exponentials:
    """Sum the exponentials of each row in one pass, `hidden` [P] known positives left out."""
    # finite, unlike -inf: a row with nothing to sum must not make NaN
    lowest = torch.finfo(stream.queries.dtype).min
    maximum = torch.full_like(stream.queries[:, 0], lowest)
    total = torch.zeros_like(maximum)
    own = stream.empty(len(stream.positives.rows))
    buffer = stream.buffer()
    scores = None
    for chunk in stream.chunks:
        scores, own[chunk.known] = stream.masked(chunk, hidden, stream.view(buffer, chunk))
        highest = torch.maximum(maximum, scores.amax(1))
        total.mul_(maximum.sub_(highest).exp_()).add_(exp_(scores.sub_(highest[:, None])).sum(1))
        maximum = highest
    overall = stream.exchange.max(maximum.clone())
    total = stream.exchange.sum(total * (maximum - overall).exp())
    total = total.clamp_min(torch.finfo(total.dtype).tiny)
    # never overall + log(total): beside scores of 1e4 the logarithm would lose its digits
    margin = (overall[stream.positives.rows] - own) + total.log()[stream.positives.rows]
    kept = scores if len(stream.chunks) == 1 else None
    return Exponentials(margin, maximum, (maximum - overall).exp() / total, kept)


@dataclass(frozen=True)
class Softmax:
    """A row's weights are the exponentials of its scores; `decoupled`: of its negatives alone."""

    decoupled: bool

    def hidden(self, positives: Positives) -> Tensor:
        """Known positives that are no term of the denominator. [P]"""
        return torch.ones_like(positives.counted) if self.decoupled else ~positives.counted

    def forward(self, stream: Stream) -> Parts:
        """Weigh the margin of every positive to its row's log-sum-exp."""
        positives = stream.positives
        sums = exponentials(stream, self.hidden(positives))
        margin = sums.margins
        # of each positive in the loss: [P]
        share = stream.weights / len(stream.queries) * positives.counted
        if self.decoupled:
            share = share / positives.per_row.to(share.dtype).clamp_min(1)[positives.rows]
            point = -share * margin.sigmoid()
            value = (share * functional.softplus(margin, threshold=40)).sum()
        else:
            point = -share
            value = (share * margin).sum()
        # one message for both
        summed = stream.exchange.sum(torch.cat([stream.per_row(point), value[None]]))
        return Parts(
            value=summed[-1],
            factor=-summed[:-1] * sums.scale,  # a row's G sums to 0
            point=point,
            kept=sums.kept,
            reference=sums.maximum,
            rebuild=self.weights,
        )

    def weights(
        self,
        stream: Stream,
        chunk: Chunk,
        maximum: Tensor | None,
        out: Tensor,
    ) -> Tensor:
        """exp(s - m) of a chunk's labels. -> [B, c]"""
        assert maximum is not None
        scores, _ = stream.masked(chunk, self.hidden(stream.positives), out)
        return exp_(scores.sub_(maximum[:, None]))


def softmax(
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [L, D]
    positives: Positives,
    bias: Tensor | None = None,  # [L]
    tau: float = 1.0,
    exchange: Exchange = Exchange(),  # noqa: B008 (stateless)
    chunk: int | None = None,
) -> Tensor:
    """mean_i sum_{j in P_i} w_ij (logsumexp_l s_il - s_ij). -> []

    s = queries @ labels.T / tau + bias. The sum over a row's positives is not divided by |P_i|. l
    runs over all labels that are not absent.
    """
    return streamed_loss(
        Softmax(decoupled=False),
        queries=queries,
        labels=labels,
        positives=positives,
        bias=bias,
        tau=tau,
        exchange=exchange,
        chunk=chunk,
    )


def decoupled_softmax(
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [L, D]
    positives: Positives,
    bias: Tensor | None = None,  # [L]
    tau: float = 1.0,
    exchange: Exchange = Exchange(),  # noqa: B008 (stateless)
    chunk: int | None = None,
) -> Tensor:
    """mean_i 1/|P_i| sum_{j in P_i} w_ij softplus(N_i - s_ij). -> []

    s = queries @ labels.T / tau + bias, N_i = logsumexp of the scores of the row's negatives. Equal
    to -log(exp s_ij / (exp s_ij + sum over negatives)): a query's positives do not compete.
    All known positives, counted or not, are kept out of N_i. A row without negatives has loss 0.
    """
    return streamed_loss(
        Softmax(decoupled=True),
        queries=queries,
        labels=labels,
        positives=positives,
        bias=bias,
        tau=tau,
        exchange=exchange,
        chunk=chunk,
    )
