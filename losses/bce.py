"""One-vs-all binary cross-entropy over a pool of labels, the baseline of DEXML (2310.10636)."""

import torch
from torch import Tensor
from torch.nn import functional

from losses.pool import Exchange, Positives
from losses.stream import Chunk, Parts, Stream, exp_, streamed_loss


def add_softplus(
    total: Tensor,
    scores: Tensor,
    spare: Tensor,
) -> None:
    """Add sum_l log(1 + exp s_il) to total [B], overwriting both others.

    As sum_l max(s_il, 0) + log1p(exp -|s_il|), which is stable at both ends.
    """
    total += torch.clamp(scores, min=0, out=spare).sum(1)
    total += exp_(torch.copysign(scores, -1.0, out=spare)).log1p_().sum(1)


class BCE:
    """Every known positive is kept out of the sum over labels, whose weights are sigmoid(s)."""

    def forward(self, stream: Stream) -> Parts:
        """Sum softplus over all labels but the known positives, then add those that count."""
        positives = stream.positives
        known = torch.ones_like(positives.counted)
        buffer = stream.buffer()
        spare = stream.buffer()
        own = stream.empty(len(positives.rows))  # scores of the known positives [P]
        total = torch.zeros_like(stream.queries[:, 0])
        kept = None
        for chunk in stream.chunks:
            scores, own[chunk.known] = stream.masked(chunk, known, stream.view(buffer, chunk))
            add_softplus(total, scores, stream.view(spare, chunk))
            kept = scores.sigmoid_() if len(stream.chunks) == 1 else None
        held = total.new_full((), len(stream.labels), dtype=torch.float64)
        num_labels = stream.exchange.sum(held)
        share = (1 / (len(total) * num_labels)).to(total.dtype)  # of one entry in the mean
        weights = stream.weights * positives.counted
        value = total.sum() - (weights * functional.logsigmoid(own)).sum()
        point = -share * weights * torch.sigmoid(-own)
        return Parts(
            value=stream.exchange.sum(share * value),
            factor=share.expand_as(total),
            point=point,
            kept=kept,
            rebuild=self.weights,
        )

    def weights(
        self, stream: Stream, chunk: Chunk, _reference: Tensor | None, out: Tensor
    ) -> Tensor:
        """sigmoid(s) of a chunk's labels, 0 at known positives. -> [B, c]"""
        known = torch.ones_like(stream.positives.counted)
        scores, _ = stream.masked(chunk, known, out)
        return scores.sigmoid_()


def bce(
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [L, D]
    positives: Positives,
    bias: Tensor | None = None,  # [L]
    tau: float = 1.0,
    exchange: Exchange = Exchange(),  # noqa: B008 (stateless)
    chunk: int | None = None,
) -> Tensor:
    """1/(B L) sum_i [ sum_{negatives} softplus(s_il) + sum_{j in P_i} w_ij softplus(-s_ij) ]. -> []

    s = queries @ labels.T / tau + bias. L counts the labels of all processes; absent entries count
    in L and are left out of the sum. A row without positives still teaches its negatives.
    """
    return streamed_loss(
        BCE(),
        queries=queries,
        labels=labels,
        positives=positives,
        bias=bias,
        tau=tau,
        exchange=exchange,
        chunk=chunk,
    )
