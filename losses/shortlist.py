"""Losses over the labels of a shortlist that paths through a graph have found.

The final score of a label is p = sigmoid(z) s, with z its classifier's logit and s = s_c s_cl its
path score.
"""

import torch
from torch import Tensor
from torch.nn import functional


def shortlist_bce(
    *,
    logits: Tensor,  # [B, K] z = w_l . x + bias_l
    log_paths: Tensor,  # [B, K] log s <= 0
    positive: Tensor,  # [B, K] bool
    counted: Tensor,  # [B, K] bool; False: no label, or one that is absent from the loss
) -> Tensor:
    """Sum over rows and labels of BCE(p, y). -> []

    The loss of ELIAS (Gupta et al., NeurIPS 2022, arXiv 2210.08410).
    log p = log sigmoid(z) + log s, and 1 - p = sigmoid(-z) + sigmoid(z) (1 - s) is a sum of two
    positive numbers: neither loses digits where p comes close to 0 or 1.
    """
    log_paths = torch.where(counted, log_paths, 0.0)
    logits = torch.where(counted, logits, 0.0)
    hit = -functional.logsigmoid(logits) - log_paths
    none = torch.sigmoid(-logits) - torch.sigmoid(logits) * torch.expm1(log_paths)  # 1 - p
    miss = -torch.log(none + 1e-30)
    return torch.where(counted, torch.where(positive, hit, miss), 0.0).sum()


def shortlist_decoupled_softmax(
    *, logits: Tensor, log_paths: Tensor, positive: Tensor, counted: Tensor
) -> Tensor:
    """Sum_i -1/|P_i| sum_{j in P_i} log p_j / (p_j + sum of p over the row's negatives). -> []

    DEXML's decoupled softmax (Gupta et al., ICLR 2024, arXiv 2310.10636) with the final scores p in
    the place of exp s; P_i are the positives that the shortlist holds. Arguments as for
    `shortlist_bce`.
    """
    scores = functional.logsigmoid(logits) + torch.where(counted, log_paths, 0.0)
    negatives = scores.masked_fill(positive | ~counted, -1e30).logsumexp(1, keepdim=True)
    terms = torch.logaddexp(scores, negatives) - scores
    positive = positive & counted
    return (torch.where(positive, terms, 0.0).sum(1) / positive.sum(1).clamp(min=1)).sum()


def path_loss(
    *,
    log_paths: Tensor,
    positive: Tensor,
    counted: Tensor,
) -> Tensor:
    """Sum over rows and positives of -log s. -> []

    BCE of the path scores, positives only: ELIAS's second term.
    """
    return -torch.where(positive & counted, log_paths, 0.0).sum()
