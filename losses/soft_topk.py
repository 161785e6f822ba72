"""Soft top-k over a pool of labels (DEXML: Gupta et al., ICLR 2024, 2310.10636, section 4.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from losses.pool import Exchange, Positives
from losses.stream import Parts, Stream, streamed_loss
from losses.threshold import solve


def add_slopes(
    logits: Tensor,
    shift: Tensor,
    total: Tensor,
) -> None:
    """Turn logits [B, c] into p (1 - p), p = sigmoid(logits + shift), and add their sum to total.

    shift [B]; total [B].
    """
    # q is the smaller of p and 1 - p: 1 - p itself would lose its digits
    q = logits.add_(shift[:, None]).copysign_(-1.0).sigmoid_()
    total += q.addcmul_(q, q, value=-1).sum(1)


@dataclass(frozen=True)
class SoftTopK:
    """The loss and its gradient in logits a = alpha s, u = alpha t.

    With p = sigmoid(a + u), v = p (1 - p) and g_ij = w_ij / (B |P_i|):

    du/da_l = -v_l / sum v, so dloss/da_il = -g_il (1 - p_il) + (sum_j g_ij (1 - p_ij)) v_il / sum_l
    v_il.
    """

    k: float | Tensor | str

    def forward(self, stream: Stream) -> Parts:
        """Find the thresholds u, then turn the logits into the slopes v in their place."""
        positives = stream.positives
        logits, own = self.logits(stream)
        absent = stream.per_row((~positives.counted).to(own.dtype))
        present = stream.exchange.sum((len(stream.labels) - absent).round())
        k = positives.per_row.clamp_min(1) if isinstance(self.k, str) else self.k
        shift, _ = solve(logits, k, present, stream.exchange)
        total = torch.zeros_like(shift)
        for chunk in stream.chunks:  # in the logits' place: one B x L matrix
            add_slopes(logits[:, chunk.labels], shift, total)
        own = own + shift[positives.rows]
        share = stream.weights / len(shift) * positives.counted
        share = share / positives.per_row.to(share.dtype).clamp_min(1)[positives.rows]
        value = -(share * functional.logsigmoid(own)).sum()
        point = -share * torch.sigmoid(-own)
        sums = stream.exchange.sum(torch.stack([total, stream.per_row(point)]))
        factor = -sums[1] / sums[0].clamp_min(1e-30)  # slopes that all underflowed: 0, not 0 / 0
        return Parts(stream.exchange.sum(value), factor, point, kept=logits)

    def logits(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """The matrix [B, L], -inf where absent, and the known positives' own logits [P]."""
        logits = stream.empty(len(stream.queries), len(stream.labels))
        own = stream.empty(len(stream.positives.rows))
        for chunk in stream.chunks:
            _, own[chunk.known] = stream.masked(
                chunk, ~stream.positives.counted, logits[:, chunk.labels]
            )
        return logits, own


def soft_topk(
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [L, D]
    positives: Positives,
    bias: Tensor | None = None,  # [L]
    tau: float = 1.0,
    exchange: Exchange = Exchange(),  # noqa: B008 (stateless)
    chunk: int | None = None,
    k: float | Tensor | str = 5,  # number, [B], or "num_pos": |P_i|
    alpha: float = 2.0,
) -> Tensor:
    """-mean_i 1/|P_i| sum_{j in P_i} w_ij log sigmoid(alpha (s_ij + t_i)). -> []

    s = queries @ labels.T / tau + bias; t_i solves sum_l sigmoid(alpha (s_il + t_i)) = k_i over the
    M_i labels that are not absent. No finite t_i reaches k_i >= M_i: k_i is limited to M_i - 0.5.
    The gradient is through t by implicit differentiation. Holds one B x L matrix, whatever `chunk`;
    a host sync per pass.
    """
    if isinstance(k, str) and k != "num_pos":
        raise ValueError(f'expected k to be a number, a tensor [B] or "num_pos", got {k!r}')
    if isinstance(k, Tensor) and k.dim() and k.shape != queries.shape[:1]:
        raise ValueError(f"expected k of shape [{len(queries)}], got {tuple(k.shape)}")
    return streamed_loss(
        SoftTopK(k),
        queries=queries,
        labels=labels,
        positives=positives,
        bias=bias,
        tau=tau,
        exchange=exchange,
        chunk=chunk,
        sharpness=alpha,
    )
