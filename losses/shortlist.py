"""ELIAS's loss over the labels of a shortlist (Gupta et al., NeurIPS 2022, arXiv 2210.08410, equation 5)."""

import torch
from torch import Tensor
from torch.nn import functional


def shortlist_bce(
    *,
    logits: Tensor,  # [B, K] w_l . x + bias_l
    log_paths: Tensor,  # [B, K] log(s_c s_cl) <= 0
    positive: Tensor,  # [B, K] bool
    counted: Tensor,  # [B, K] bool; False: no label, or one that is absent from the loss
    path_weight: float = 0.0,  # lambda
) -> Tensor:
    """sum over rows and labels of BCE(sigmoid(z) s, y) + lambda sum over positives of -log s. -> []

    With s the path score: log p = log sigmoid(z) + log s, and 1 - p = sigmoid(-z) + sigmoid(z) (1 - s), a sum of
    two positive numbers, so neither loses digits where p comes close to 0 or 1.
    """
    log_paths = torch.where(counted, log_paths, 0.0)
    logits = torch.where(counted, logits, 0.0)
    hit = -functional.logsigmoid(logits) - (1 + path_weight) * log_paths
    # A path of exactly 1 has 1 - s = 0; its derivative there is that of expm1, never that of a logarithm.
    miss = -torch.log(torch.sigmoid(-logits) - torch.sigmoid(logits) * torch.expm1(log_paths) + 1e-30)
    return torch.where(counted, torch.where(positive, hit, miss), 0.0).sum()
