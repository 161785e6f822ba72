"""Losses over a pool of labels: those of DEXML exact, streamed over chunks, ready for sharded
labels; and triplets.

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

from losses.bce import bce
from losses.pool import Exchange, Positives
from losses.soft_topk import soft_topk
from losses.softmax import decoupled_softmax, softmax
from losses.threshold import soft_topk_threshold
from losses.triplet import triplet, violations

LOSSES = {
    "softmax": softmax,
    "decoupled-softmax": decoupled_softmax,
    "soft-topk": soft_topk,
    "bce": bce,
}
ROW_LOSSES = {"triplet": triplet}  # not streamed: they need whole rows of the pool's scores

__all__ = [
    "LOSSES",
    "ROW_LOSSES",
    "Exchange",
    "Positives",
    "bce",
    "decoupled_softmax",
    "soft_topk",
    "soft_topk_threshold",
    "softmax",
    "triplet",
    "violations",
]
