"""Losses over a pool of labels.

Those of DEXML are exact, streamed over chunks and ready for sharded labels; triplets look at whole
rows.

| name              | function          | source                                          |
| ----------------- | ----------------- | ----------------------------------------------- |
| softmax           | softmax           | Gupta et al., ICLR 2024 (arXiv 2310.10636)      |
| decoupled-softmax | decoupled_softmax | the same                                        |
| soft-topk         | soft_topk         | the same                                        |
| bce               | bce               | one-vs-all baseline of the same                 |
| triplet           | triplet           | Dahiya et al., WSDM 2023 (NGAME), KDD 2023      |

    from losses import LOSSES, Positives
    positives = Positives.build(rows, cols, num_queries=len(queries))
    loss = LOSSES["decoupled-softmax"](queries=queries, labels=labels, positives=positives,
        tau=0.05)
    loss.backward()
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from losses.bce import bce
from losses.pool import Exchange, Positives
from losses.soft_topk import soft_topk
from losses.softmax import decoupled_softmax, softmax
from losses.threshold import soft_topk_threshold
from losses.triplet import triplet, violations


class RowLoss(Protocol):
    """A loss of whole rows of the pool's scores; options of its own have defaults."""

    def __call__(
        self,
        *,
        queries: Tensor,  # [B, D]
        labels: Tensor,  # [L, D]
        positives: Positives,
        bias: Tensor | None = ...,  # [L]
        tau: float = ...,
    ) -> Tensor: ...


class StreamedLoss(Protocol):
    """A loss that may see the labels by chunks, and a share of them on each process."""

    def __call__(
        self,
        *,
        queries: Tensor,
        labels: Tensor,
        positives: Positives,
        bias: Tensor | None = ...,
        tau: float = ...,
        exchange: Exchange = ...,  # joins the shares
        chunk: int | None = ...,  # labels at a time; None: by size
    ) -> Tensor: ...


LOSSES: dict[str, StreamedLoss] = {
    "softmax": softmax,
    "decoupled-softmax": decoupled_softmax,
    "soft-topk": soft_topk,
    "bce": bce,
}
ROW_LOSSES: dict[str, RowLoss] = {"triplet": triplet}

__all__ = [
    "LOSSES",
    "ROW_LOSSES",
    "Exchange",
    "Positives",
    "RowLoss",
    "StreamedLoss",
    "bce",
    "decoupled_softmax",
    "soft_topk",
    "soft_topk_threshold",
    "softmax",
    "triplet",
    "violations",
]
