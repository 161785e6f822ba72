"""Triplet margin loss with online hard negatives.

NGAME: Dahiya et al., WSDM 2023; DEXA: the same, KDD 2023. Unlike the softmax family it looks for
the hardest labels of a query, so it wants whole rows of the pool's scores: with many processes each
has its own queries and the labels of all (models.batching.label_pool.pool_loss).
"""

import torch
from torch import Tensor
from torch.nn import functional

from losses.pool import Positives
from losses.stream import check_shapes


def pool_scores(
    queries: Tensor, labels: Tensor, positives: Positives, bias: Tensor | None, tau: float
) -> tuple[Tensor, Tensor]:
    """Scores [B, K], and the same with -inf at every known positive, sampled or not [B, K]."""
    check_shapes(queries, labels, bias, positives)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, labels.dtype), torch.float32)
    scores = queries.to(dtype) @ labels.to(dtype).T / tau
    if bias is not None:
        scores = scores + bias
    known = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    known[positives.rows, positives.cols] = True
    return scores, scores.masked_fill(known, -torch.inf)


def hardest(
    scores: Tensor,
    rows: Tensor,
    count: int | None,
    positives: Positives,
) -> Tensor:
    """Positions in `scores` [P] of the `count` lowest of each row (all if None).

    rows [P]: the row of each. positives: whose counted ones have these scores. Equal scores come in
    their order.
    """
    if count is None:
        return torch.arange(len(rows), device=rows.device)
    by_score = scores.argsort(stable=True)
    order = by_score[rows[by_score].argsort(stable=True)]  # by row, inside a row by score
    per_row = positives.per_row.long()
    first = per_row.cumsum(0) - per_row  # position of each row's lowest in `order`
    place = torch.arange(len(rows), device=rows.device) - first[rows[order]]
    kept = positives.at_most(count)
    return order[(place >= count).long().argsort(stable=True)[:kept]]


def triplet(
    *,
    queries: Tensor,  # [B, D]
    labels: Tensor,  # [K, D]: the whole pool
    positives: Positives,
    bias: Tensor | None = None,  # [K]
    tau: float = 1.0,
    margin: float = 0.3,
    hardest_negatives: int = 10,
    hardest_positives: int | None = None,
    hardness_tau: float = 0.1,
) -> Tensor:
    """mean_i mean_{j in H_i} w_ij sum_{n in N_i} p_ijn max(0, s_in - s_ij + margin). -> []

    s = queries @ labels.T / tau + bias. N_i: the `hardest_negatives` labels of highest score that
    are not known positives; H_i: the counted positives, or the `hardest_positives` of lowest score
    among them. p_ij: softmax of s_in / hardness_tau over the n of N_i that violate the margin; it
    chooses and is not differentiated. A row without positives or negatives has loss 0. DEXA's
    encoder takes one sampled positive and 10 negatives, its classifiers 3 x 5 with margin 0.2.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores, negatives = pool_scores(queries, labels, positives, bias, tau)
        negatives = negatives.topk(min(hardest_negatives, len(labels)), dim=1).values  # [B, n]
        counted = positives.where_counted()
        rows = positives.rows[counted]
        own = scores[rows, positives.cols[counted]]  # [P]
        chosen = hardest(own.detach(), rows, hardest_positives, positives)
        rows = rows[chosen]
        own = own[chosen]
        weights = positives.weights[counted][chosen]
        hinges = (negatives[rows] - own[:, None] + margin).clamp_min(0)  # [P, n]
        with torch.no_grad():
            logits = negatives[rows] / hardness_tau
            satisfied = hinges == 0
            logits = logits.masked_fill(satisfied, torch.finfo(logits.dtype).min)
            shares = functional.softmax(logits, 1)
        per_row = positives.per_row.clamp(1, hardest_positives)  # None: no limit
        return ((shares * hinges).sum(1) * weights / per_row[rows]).sum() / max(len(queries), 1)


@torch.no_grad()
def violations(
    *, queries: Tensor, labels: Tensor, positives: Positives, margin: float
) -> tuple[Tensor, Tensor]:
    """How many (counted positive, negative) pairs of the pool violate the margin, of how many.

    -> two scalars
    """
    scores, negatives = pool_scores(queries, labels, positives, None, 1.0)
    counted = positives.where_counted()
    rows = positives.rows[counted]
    own = scores[rows, positives.cols[counted]]  # [P]
    violating = negatives[rows] > (own - margin)[:, None]  # [P, K]
    return violating.sum(), (negatives[rows] > -torch.inf).sum()
