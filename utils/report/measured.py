"""What a report measures: metrics by the labels' frequency, confusions, clusters.

Letters: n points, L labels, W kept predictions of a point (-1 = no more).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.sparse import contains

MAX_PAIRS = 40  # confusions
EXAMPLES = 8  # clusters of a tree
IN_CLUSTER = 6  # labels of each
MAX_NAME = 60  # characters of each
VOLUME_SAYS = (
    "Labels by training points, cut so that each part has about a third of all training pairs: the "
    "tail has many rare labels, the head a few frequent ones."
)


def by_decile(
    ids: np.ndarray,
    relevance: sp.csr_matrix,
    label_counts: np.ndarray,
    ks: Sequence[int],
    groups: int = 10,
) -> dict[str, Any]:
    """Return metrics of labels of like frequency, as `by_group`.

    Labels are ordered by training points (equal ones by id) and cut into `groups` runs of nearly
    equal numbers of labels, the rarest first.
    """
    order = np.argsort(label_counts, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return by_group(ids, relevance, label_counts, ks, parts)


def by_volume(
    ids: np.ndarray,
    relevance: sp.csr_matrix,
    label_counts: np.ndarray,
    ks: Sequence[int],
) -> dict[str, Any]:
    """Return metrics of tail, torso and head, as `by_group`, with `names` and `says`.

    See `volume_parts`; one without labels is left out.
    """
    parts = volume_parts(label_counts)
    named = {name: part for name, part in parts.items() if len(part)}
    found = by_group(ids, relevance, label_counts, ks, [*named.values()])
    return {"names": [*named], "says": VOLUME_SAYS, **found}


def volume_parts(label_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the ids of the labels of tail, torso and head, rarest first.

    Labels are ordered by training points (equal ones by id) and cut so that each part has a third
    of all training pairs. A label over a cut belongs to the part of its last pair, one without
    training points to the tail.
    """
    counts = np.asarray(label_counts, dtype=np.int64)
    order = np.argsort(counts, kind="stable")
    volume = np.cumsum(counts[order])  # [L], pairs of a label and of all rarer ones
    thirds = volume[-1] * np.array([1, 2])
    cuts = np.searchsorted(3 * volume, thirds, side="right")
    tail, torso, head = np.split(order, cuts)
    return {"tail": tail, "torso": torso, "head": head}


def by_group(
    ids: np.ndarray,
    relevance: sp.csr_matrix,
    label_counts: np.ndarray,
    ks: Sequence[int],
    parts: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Return metrics of groups of labels.

    With H_g(k) the true labels of group g among the first k predictions of all n points:

        P@k of g = H_g(k) / (k n), which sums to P@k over the groups
        recall@k of g = H_g(k) / true pairs of g

    Args:
        ids: [n, W] predictions, best first, -1 = no more.
        relevance: CSR [n, L].
        label_counts: [L] training points of each label.
        parts: ids of each group's labels, the rarest first; every label is in one of them.
    Returns:
        lists of one value a group, in percent: labels, fewest and most training points, pairs, and
            "P@k" and "recall@k" of every k.
    Raises:
        ValueError: a k is larger than W.
    """
    if max(ks) > ids.shape[1]:
        raise ValueError(
            f"ks: expected at most the {ids.shape[1]} predictions kept of a point, got {max(ks)}"
        )
    counts = np.asarray(label_counts)
    group = np.empty(len(counts), np.int64)  # [L]
    for number, part in enumerate(parts):
        group[part] = number
    pairs = np.bincount(group[relevance.indices], minlength=len(parts)).tolist()
    found: dict[str, Any] = {
        "labels": [len(part) for part in parts],
        "fewest": [int(counts[part[0]]) for part in parts],
        "most": [int(counts[part[-1]]) for part in parts],
        "pairs": pairs,
    }
    hits = contains(relevance, np.arange(len(ids))[:, None], ids)  # [n, W]
    for k in ks:
        right = np.bincount(group[ids[:, :k][hits[:, :k]]], minlength=len(parts))
        found[f"P@{k}"] = (100 * right / max(k * len(ids), 1)).tolist()
        found[f"recall@{k}"] = [
            100 * hits_of_group / pairs_of_group if pairs_of_group else None
            for hits_of_group, pairs_of_group in zip(right.tolist(), pairs, strict=True)
        ]
    return found


def confused_pairs(
    ids: np.ndarray, relevance: sp.csr_matrix, limit: int = MAX_PAIRS
) -> list[tuple[int, int, int]]:
    """Return (true label, wrong label, times), the most frequent first.

    Counted are points whose first prediction is the wrong label and that miss the true one among
    their predictions ids [n, W].
    """
    first = ids[:, 0]
    wrong = np.flatnonzero((first >= 0) & ~contains(relevance, np.arange(len(ids)), first))
    truth = relevance[wrong]
    num_labels = relevance.shape[1]
    rows = np.repeat(np.arange(len(wrong)), np.diff(truth.indptr))
    missed = ~(ids[wrong[rows]] == truth.indices[:, None]).any(axis=1)
    true = truth.indices[missed].astype(np.int64)
    pairs, times = np.unique(true * num_labels + first[wrong[rows[missed]]], return_counts=True)
    most = np.argsort(-times, kind="stable")[:limit]
    return [
        (int(pair // num_labels), int(pair % num_labels), int(count))
        for pair, count in zip(pairs[most], times[most], strict=True)
    ]


def cluster_histogram(sizes: np.ndarray, bins: int = 20) -> dict[str, Any]:
    """Count how many clusters have which size: counts [bins] and edges [bins + 1]."""
    counts, edges = np.histogram(sizes, bins=min(bins, max(int(np.ptp(sizes)), 1)))
    return {
        "clusters": len(sizes),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "counts": counts.tolist(),
        "edges": edges.tolist(),
    }


def cluster_examples(
    trees: Mapping[str, sp.csr_matrix],
    counts: np.ndarray,
    texts: Sequence[str],
) -> list[dict[str, Any]]:
    """Show the clusters that the most training pairs fall into: {name, labels, pairs, texts}.

    EXAMPLES clusters of each tree, each with the IN_CLUSTER labels of the strongest edges, of equal
    ones the most frequent.

    Args:
        trees: by name, labels of each cluster of a tree or graph, CSR [C, L] with an entry, an
            edge's weight or 1, where a label is in a cluster.
        counts: [L] training points of each label.
    """
    examples = []
    for name, clusters in trees.items():
        pairs = (clusters != 0) @ counts  # [C]
        for cluster in np.argsort(-pairs, kind="stable")[:EXAMPLES]:
            inside = slice(clusters.indptr[cluster], clusters.indptr[cluster + 1])
            labels = clusters.indices[inside]
            order = np.lexsort((labels, -counts[labels], -clusters.data[inside]))
            best = labels[order[:IN_CLUSTER]]
            examples.append(
                {
                    "name": f"{cluster}, {name}",
                    "labels": len(labels),
                    "pairs": int(pairs[cluster]),
                    "texts": [texts[label][:MAX_NAME] for label in best],
                }
            )
    return examples
