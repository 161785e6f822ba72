"""Which labels belong to which clusters, by how often a label's points are matched to a cluster.

One routine for two methods: overlap-XMC's assignment of every label to its best clusters (Liu et
al., NeurIPS 2021, arXiv 2106.12751) and ELIAS's approximate A, for every cluster its best labels
(Gupta et al., NeurIPS 2022, arXiv 2210.08410, section 3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp

from utils.sparse import CELLS, canonical, refuse, topk_csr, topk_rows


def count_matrix(relevance: sp.csr_matrix, matching: sp.csr_matrix) -> sp.csr_matrix:
    """Y^T M: for label l and cluster c the sum of M over the positive points of l.

    With a binary M these are counts, exact below 2^24.

    Args:
        relevance: Y [N, L]; every stored entry counts 1, whatever its value.
        matching: M [N, C], ones or scores.
    Raises:
        ValueError: they have different numbers of points.
    """
    if relevance.shape[0] != matching.shape[0]:
        raise ValueError(
            f"count_matrix: the relevance has {relevance.shape[0]:,} points, the matching "
            f"{matching.shape[0]:,}"
        )
    relevance = canonical(relevance)
    matching = canonical(matching).astype(np.float32, copy=False)
    ones = np.ones(relevance.nnz, np.float32)
    labels = sp.csr_matrix((ones, relevance.indices, relevance.indptr), relevance.shape).T.tocsr()
    return canonical(labels @ matching)


def top_assignment(
    counts: sp.csr_matrix,
    budget: int,
    *,
    axis: Literal["label", "cluster"],
    binary: bool,
    fallback: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Keep the largest counts of each label or each cluster; entries of 0 count as absent.

    Args:
        counts: [L, C], what `count_matrix` gave.
        budget: clusters of a label, or labels of a cluster, at most.
        axis: "label": each label's top clusters, [L, C], equal counts by lower cluster id; the same
            as a greedy pass over all entries by descending count. "cluster": each cluster's top
            labels, [C, L], by lower label id.
        binary: entries become 1; else they keep their counts.
        fallback: [L] the cluster of a label without any count (of count 0 unless `binary`); without
            it such a label has none. For axis "label" only.
    Raises:
        ValueError: more clusters a label than there are, counts that are negative, NaN or infinite,
            a fallback of another shape or out of range.
    """
    if axis not in ("label", "cluster"):
        raise ValueError(f"top_assignment: unknown axis '{axis}'; known: label, cluster")
    num_labels, num_clusters = counts.shape
    if budget < 1:
        raise ValueError(f"top_assignment: expected a budget >= 1, got {budget}")
    if axis == "label" and budget > num_clusters:
        raise ValueError(
            f"top_assignment: {budget} copies of each label need as many clusters, there are "
            f"{num_clusters}"
        )
    if fallback is not None:
        fallback = _checked(np.asarray(fallback), counts.shape, axis)
    counts = canonical(counts)
    bad = ~(np.isfinite(counts.data) & (counts.data >= 0))
    refuse(bad, counts, "top_assignment", "finite counts >= 0")
    if axis == "cluster":
        counts = canonical(counts.T)
    keep = min(budget, counts.shape[1])
    at_once = max(1, CELLS // keep)  # bounds the padded lists
    blocks = []
    for start in range(0, counts.shape[0], at_once):
        rows = slice(start, start + at_once)
        of_rows = None if fallback is None else fallback[rows]
        blocks.append(_top_block(counts[rows], keep, of_rows))
    if blocks:
        chosen = sp.vstack(blocks, format="csr")
    else:
        chosen = sp.csr_matrix(counts.shape, dtype=np.float32)
    if binary:
        chosen.data[:] = 1
    return chosen


def _top_block(
    counts: sp.csr_matrix,
    keep: int,
    fallback: np.ndarray | None,
) -> sp.csr_matrix:
    """`keep` largest entries of each row; a row without any gets the column `fallback` [rows]."""
    ids, values = topk_rows(counts, keep)
    ids[values <= 0] = -1  # stored zeros
    if fallback is not None:
        missing = ids[:, 0] < 0
        ids[missing, 0] = fallback[missing]
        values[missing, 0] = 0
    return topk_csr(values, ids, counts.shape[1])


def _checked(
    fallback: np.ndarray,
    shape: tuple[int, int],
    axis: str,
) -> np.ndarray:
    num_labels, num_clusters = shape
    if axis != "label":
        raise ValueError("top_assignment: a fallback is for axis 'label' only")
    if fallback.shape != (num_labels,):
        raise ValueError(
            f"top_assignment: expected a fallback of shape ({num_labels},), got {fallback.shape}"
        )
    bad = (fallback < 0) | (fallback >= num_clusters)
    if bad.any():
        label = int(np.argmax(bad))
        raise ValueError(
            f"top_assignment: expected a fallback in [0, {num_clusters}), got {fallback[label]} "
            f"for label {label}"
        )
    return fallback
