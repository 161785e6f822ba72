"""Training of partition trees: clusters of labels, then a layer of rankers for each level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import scipy.sparse as sp

from utils.clustering.clustering import balanced_hierarchy, splits_for
from utils.clustering.matching import count_matrix, top_assignment
from utils.linear.layer import Features, Layer, Solver, fit_layer
from utils.linear.partition_tree import Combiner, PartitionTree
from utils.sparse import normalised


@dataclass(frozen=True)
class Skeleton:
    """A tree without weights: the clusters of every level, and the labels in the last ones.

    Attributes:
        child_ptrs: for each level [parents + 1]: children of parent c are the nodes
            ptr[c]:ptr[c + 1] of the level.
        node_labels: label of each node of the last level [nodes].
    """

    child_ptrs: tuple[np.ndarray, ...]
    node_labels: np.ndarray

    @property
    def leaves(self) -> int:
        """Clusters of the last level C."""
        return len(self.child_ptrs[-1]) - 1

    @property
    def node_clusters(self) -> np.ndarray:
        """Last-level cluster of each node [nodes]."""
        return np.repeat(np.arange(self.leaves), np.diff(self.child_ptrs[-1]))

    def membership(self, num_labels: int) -> sp.csr_matrix:
        """Which labels live in which clusters: binary [L, C]."""
        ones = np.ones(len(self.node_labels), np.float32)
        return sp.csr_matrix(
            (ones, (self.node_labels, self.node_clusters)), shape=(num_labels, self.leaves)
        )

    def with_leaves(self, assignment: sp.csr_matrix) -> Skeleton:
        """The same tree with other labels in its last clusters.

        assignment: [L, C], one entry a copy.
        """
        columns = assignment.tocsc()
        columns.sort_indices()
        return Skeleton(
            (*self.child_ptrs[:-1], columns.indptr.astype(np.int64)),
            columns.indices.astype(np.int64),
        )


def label_centroids(relevance: sp.csr_matrix, features: sp.csr_matrix) -> sp.csr_matrix:
    """PIFA, positive instance feature aggregation.

    Each label's sum of its points' features, normalised: [L, F].
    """
    ones = relevance.copy()
    ones.data = np.ones_like(ones.data)
    sums = (ones.T.tocsr() @ features).astype(np.float32, copy=False)
    return normalised(sums)


def pifa(relevance: sp.csr_matrix, features: Features) -> sp.csr_matrix:
    """Embed labels [L, F + D] by centroids of their points.

    Those of the sparse features and, beside them, of the dense ones, each of unit length.
    """
    sparse = label_centroids(relevance, features.sparse)
    if not features.dense.shape[1]:
        return sparse
    ones = sp.csr_matrix(
        (np.ones(relevance.nnz, np.float32), relevance.indices, relevance.indptr), relevance.shape
    )
    dense = normalised(sp.csr_matrix(ones.T @ features.dense))
    return sp.hstack([sparse, dense], format="csr")


def tree_levels(
    labels: int,
    max_leaf: int,
    splits: int,
) -> list[int]:
    """Splits of each level above the leaves, with never more leaves than labels."""
    levels = splits_for(labels, max_leaf, splits)
    if prod(levels) > labels:
        levels[0] = max(1, labels // prod(levels[1:]))
    return levels


def grow(
    embeddings: sp.csr_matrix,
    labels: np.ndarray,
    *,
    max_leaf: int,
    splits: int,
    seed: int,
    threads: int,
) -> Skeleton:
    """Cluster labels into a tree whose last clusters hold at most `max_leaf` of them.

    Args:
        embeddings: [L, F].
        labels: the ids to place [n], in any number, those without training points left out.
        splits: children of a cluster above the last level.
    """
    levels = tree_levels(len(labels), max_leaf, splits)
    if not levels:
        return Skeleton((np.array([0, len(labels)]),), labels)
    hierarchy = balanced_hierarchy(
        embeddings[labels], levels, seed=seed, threads=threads, name="cluster labels"
    )
    counts = [np.bincount(hierarchy.parents(level)) for level in range(len(levels))]
    pointers = [np.concatenate([[0], np.cumsum(count)]) for count in counts]
    return Skeleton((*pointers, hierarchy.bounds[-1]), labels[hierarchy.order])


@dataclass(frozen=True)
class Ranking:
    """How a tree's rankers are trained.

    Attributes:
        negatives: points a cluster's rankers are trained on: `positives` = those with a label in it
            (teacher forcing), `beam` = those whose beam reaches it (matcher aware), `both` = their
            union.
        beam, combiner: of the beam search for these negatives.
    """

    solver: Solver
    negatives: Literal["positives", "beam", "both"]
    beam: int
    combiner: Combiner
    threads: int


def fit_tree(
    features: Features,
    relevance: sp.csr_matrix,
    skeleton: Skeleton,
    ranking: Ranking,
    absent: sp.csr_matrix | None = None,
    *,
    kept: Sequence[Layer] = (),
    keep: Callable[[int, Layer], None] = lambda level, layer: None,
) -> PartitionTree:
    """Train the rankers of every level.

    Args:
        relevance: [N, L].
        absent: [N, L] pairs that are neither positive nor negative.
        kept: layers that were trained before.
        keep: called with each new layer.
    """
    positives = _positives(relevance, skeleton)
    layers = list(kept)
    marked = positives
    if absent is not None:
        pairs = zip(positives, _positives(absent, skeleton), strict=True)
        marked = [_marked(*pair) for pair in pairs]
    for level in range(len(layers), len(skeleton.child_ptrs)):
        reach = _reach(features, positives, layers, skeleton, ranking, level=level)
        layers.append(
            fit_layer(
                features,
                skeleton.child_ptrs[level],
                marked[level],
                reach,
                ranking.solver,
                threads=ranking.threads,
                name=f"rankers of level {level + 1} of {len(positives)}",
            )
        )
        keep(level, layers[-1])
    return PartitionTree(
        tuple(layers), skeleton.node_labels, relevance.shape[1], features.shape, ranking.solver.bias
    )


def reassign(
    tree: PartitionTree,
    skeleton: Skeleton,
    features: Features,
    relevance: sp.csr_matrix,
    *,
    copies: int,
    ranking: Ranking,
) -> Skeleton:
    """Label disentanglement: put every label where the beams of its points arrive most often.

    The matching matrix M [N, C] is the beam's last-level clusters of each training point; a label
    joins its top `copies` clusters of Y^T M, and stays where it was if no beam counts for it (Liu
    et al., section 3). Equal counts, the rule for labels of few points, go to the cluster that
    ranked higher in the beams; the released code takes the first. The levels above keep their
    clusters; their rankers are trained again, as more clusters are right for a point now.
    """
    level = len(skeleton.child_ptrs) - 2
    if level < 0:  # one cluster holds all labels
        return skeleton
    nodes, _ = tree.clusters(
        features, beam=ranking.beam, combiner=ranking.combiner, level=level, threads=ranking.threads
    )
    counts = count_matrix(relevance, beam_matrix(nodes, skeleton.leaves)).astype(np.float64)
    # These have the same pattern as the counts.
    ranks = count_matrix(relevance, beam_matrix(nodes, skeleton.leaves, by_rank=True))
    counts.data += ranks.data / (ranks.data.max(initial=0) + 1)
    labels, first = np.unique(skeleton.node_labels, return_index=True)
    best = top_assignment(
        counts[labels], copies, axis="label", binary=True, fallback=skeleton.node_clusters[first]
    )
    place = sp.csr_matrix(
        (np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))),
        shape=(relevance.shape[1], len(labels)),
    )
    return skeleton.with_leaves(place @ best)


def _positives(relevance: sp.csr_matrix, skeleton: Skeleton) -> list[sp.csc_matrix]:
    """For each level which points have a label below a node: [N, nodes]. Values do not matter."""
    columns = relevance.tocsc()
    columns.sort_indices()
    levels = [columns[:, skeleton.node_labels]]
    for pointer in skeleton.child_ptrs[:0:-1]:
        children = np.arange(pointer[-1])
        parents = np.repeat(np.arange(len(pointer) - 1), np.diff(pointer))
        up = sp.csr_matrix(
            (np.ones(len(children), np.float32), (children, parents)),
            shape=(len(children), len(pointer) - 1),
        )
        above = (levels[0].tocsr() @ up).tocsc()
        above.sort_indices()
        levels.insert(0, above)
    return levels


def _marked(positives: sp.csc_matrix, absent: sp.csc_matrix) -> sp.csc_matrix:
    """Positives > 0 and, where there is none, absent ones as stored zeros: [N, nodes]."""
    rows = np.concatenate([positives.nonzero()[0], absent.nonzero()[0]])
    columns = np.concatenate([positives.nonzero()[1], absent.nonzero()[1]])
    values = np.concatenate([np.ones(positives.nnz, np.float32), np.zeros(absent.nnz, np.float32)])
    return sp.csc_matrix((values, (rows, columns)), shape=positives.shape)


def _reach(
    features: Features,
    positives: list[sp.csc_matrix],
    layers: list[Layer],
    skeleton: Skeleton,
    ranking: Ranking,
    *,
    level: int,
) -> sp.csc_matrix:
    """Which points the rankers below each cluster are trained on: [N, parents]."""
    n = positives[0].shape[0]
    if level == 0:
        return sp.csc_matrix(np.ones((n, 1), np.float32))
    parts = []
    if ranking.negatives in ("positives", "both"):
        parts.append(positives[level - 1])
    if ranking.negatives in ("beam", "both"):
        upper = PartitionTree(
            tuple(layers), skeleton.node_labels, 0, features.shape, ranking.solver.bias
        )
        nodes, _ = upper.clusters(
            features,
            beam=ranking.beam,
            combiner=ranking.combiner,
            level=level - 1,
            threads=ranking.threads,
        )
        parts.append(beam_matrix(nodes, positives[level - 1].shape[1]).tocsc())
    reach = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    reach.sort_indices()
    return reach


def beam_matrix(
    nodes: np.ndarray,
    number: int,
    by_rank: bool = False,
) -> sp.csr_matrix:
    """Ids [n, beam], best first, padded with -1, as CSR [n, number]: the matching matrix of a beam.

    Entries are 1, or by rank: `beam` for the best down to 1 for the last.
    """
    inside = nodes >= 0
    indptr = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    beam = nodes.shape[1]
    of_place = np.arange(beam, 0, -1) if by_rank else np.ones(beam)
    values = np.broadcast_to(of_place, nodes.shape)
    return sp.csr_matrix(
        (values[inside].astype(np.float32), nodes[inside], indptr), shape=(len(nodes), number)
    )
