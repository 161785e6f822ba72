"""Exact search for the labels with the largest inner product, streamed over blocks of labels."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def exact_topk(queries: Tensor, labels: Tensor | np.ndarray, k: int, *, bias: Tensor | None = None,
               block: int = 65536) -> tuple[Tensor, Tensor]:
    """The k labels with the largest score for each query, best first; equal scores by lower label id.

    Args:
        queries: [B, D].
        labels: [L, D], a tensor or a (memory-mapped) array; read block by block, so that memory is B x block.
        bias: [L] or None.
        k: 1 to L.
        block: labels scored at once.
    Returns:
        (scores [B, k] float32, label ids [B, k] int64)
    Raises:
        ValueError: k is larger than L.
    """
    total = len(labels)
    if not 1 <= k <= total:
        raise ValueError(f"k must be from 1 to the number of labels, {total}; got {k}")
    best_scores = queries.new_empty(len(queries), 0, dtype=torch.float32)
    best_ids = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, total, block):
        part = labels[start:start + block]
        part = torch.from_numpy(np.ascontiguousarray(part)) if isinstance(part, np.ndarray) else part
        scores = (queries @ part.to(queries.device, queries.dtype).T).float()                    # [B, block]
        if bias is not None:
            scores += bias[start:start + block]
        scores, ids = scores.topk(min(k, scores.shape[1]))
        best_scores, best_ids = torch.cat([best_scores, scores], 1), torch.cat([best_ids, ids + start], 1)
        if start:
            best_scores, kept = best_scores.topk(min(k, best_scores.shape[1]))
            best_ids = best_ids.gather(1, kept)
    by_id = best_ids.argsort(dim=1)
    scores, ids = best_scores.gather(1, by_id), best_ids.gather(1, by_id)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, order), ids.gather(1, order)
