"""Formulas of ELIAS's search: scores of clusters, and the best labels of a shortlist.

s_c = clip(alpha softmax(W_C x)_c, 0, 1)
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def raised_shares(logits: Tensor, alpha: float) -> Tensor:
    """log(alpha softmax) of all clusters' logits [B, C]; clipped at 0, the log cluster scores."""
    return F.log_softmax(logits, dim=1).add_(log(alpha))


def top_clusters(
    logits: Tensor,
    alpha: float,
    beam: int,
) -> tuple[Tensor, Tensor]:
    """The `beam` clusters with the largest logits, best first, and log s_c of them: [B, beam] each.

    Overwrites the logits: at 100,000 clusters another matrix would take longer than the sum of
    exponentials itself.
    """
    top, clusters = logits.topk(beam, dim=1)
    top -= top[:, :1].clone()
    total = logits.sub_(logits.gather(1, clusters[:, :1])).exp_().sum(1, keepdim=True)
    return clusters, (top - total.log() + log(alpha)).clamp(max=0)


def best_labels(
    labels: Tensor,
    log_scores: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k best of shortlists [B, K]: scores and ids [B, k].

    The shortlists' labels ascend, so that a stable sort breaks ties by the lower id.
    """
    scores, places = log_scores.sort(dim=1, descending=True, stable=True)
    scores = scores[:, :k].exp()
    ids = labels.gather(1, places[:, :k])
    scores = scores.masked_fill(ids < 0, -torch.inf)
    fewer = (0, k - ids.shape[1])  # places to add
    return F.pad(scores, fewer, value=-torch.inf), F.pad(ids, fewer, value=-1)
