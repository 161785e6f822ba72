"""Partition trees of linear rankers: XR-Linear's model (Yu et al., PECOS, JMLR 2022).

Level t of a tree scores the children of the clusters that the level above kept; the last level's
children are labels, or copies of labels where these live in several clusters (overlap-XMC). numpy,
scipy and numba alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from utils.candidate_kernels import best_of_rows
from utils.errors import InputError
from utils.linear.kernels import merge_copies, score_pairs, spread_beam
from utils.linear.layer import Features, Layer, in_blocks
from utils.sparse import canonical


def l_hinge(power: int) -> Callable[[np.ndarray], None]:
    """exp(-max(0, 1 - s)^power), in place."""

    def transform(scores: np.ndarray) -> None:
        np.subtract(1, scores, out=scores)
        np.maximum(scores, 0, out=scores)
        base = scores.copy() if power > 1 else scores
        for _ in range(power - 1):
            scores *= base
        np.negative(scores, out=scores)
        np.exp(scores, out=scores)

    return transform


def sigmoid(scores: np.ndarray) -> None:
    """1 / (1 + exp(-s)), in place."""
    np.clip(scores, -60, 60, out=scores)
    np.negative(scores, out=scores)
    np.exp(scores, out=scores)
    scores += 1
    np.reciprocal(scores, out=scores)


def log_sigmoid(scores: np.ndarray) -> None:
    """log(1 / (1 + exp(-s))), in place."""
    np.copyto(scores, -np.logaddexp(0, -scores))


def unchanged(scores: np.ndarray) -> None:
    """The margin itself."""


@dataclass(frozen=True)
class Combiner:
    """How a path's score is made of the margins along it.

    Each is transformed in place, then combined with its parent's score.
    """

    transform: Callable[[np.ndarray], None]
    combine: np.ufunc

    @property
    def start(self) -> float:
        """The root's score."""
        return float(self.combine.identity)


COMBINERS = {
    **{f"l{p}-hinge": Combiner(l_hinge(p), np.multiply) for p in range(1, 6)},
    "sigmoid": Combiner(sigmoid, np.multiply),
    "log-sigmoid": Combiner(log_sigmoid, np.add),
    "sum": Combiner(unchanged, np.add),
}


@dataclass(frozen=True)
class PartitionTree:
    """A fitted tree over L labels."""

    layers: Sequence[Layer]
    # [nodes of the last level] label of each node, several nodes for one with copies
    node_labels: np.ndarray
    num_labels: int
    shape: tuple[int, int]  # (F, D) of the features it was fitted on
    bias: float

    def search(
        self,
        features: Features,
        k: int,
        *,
        beam: int,
        combiner: Combiner,
        mean: bool = True,
        threads: int = 1,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Beam search: the k best labels of each point, best first.

        Args:
            beam: clusters kept at each level.
            mean: copies of a label that were reached merge to their mean score, else to their
                maximum.
        Returns:
            label ids [n, k] int64 padded with -1, scores [n, k] float32 padded with -inf, and the
            average number of inner products with label rankers.
        Raises:
            ValueError: features of another width.
        """
        ids = np.full((len(features), k), -1, np.int64)
        values = np.full((len(features), k), -np.inf, np.float32)
        products = 0

        def leaves(rows: slice, scratch: np.ndarray) -> int:
            ptr, labels, reached, count = self._leaves(
                features[rows], beam, combiner, mean, scratch
            )
            best_of_rows(ptr, labels, reached, k, ids[rows], values[rows])
            return count

        for count in self._blocks(features, leaves, threads):
            products += count
        return ids, values, products / max(len(features), 1)

    def reached(
        self,
        features: Features,
        *,
        beam: int,
        combiner: Combiner,
        mean: bool = True,
        threads: int = 1,
    ) -> sp.csr_matrix:
        """Scores of all labels that the beam search of `search` reaches: CSR [n, L]."""

        def leaves(rows: slice, scratch: np.ndarray) -> sp.csr_matrix:
            ptr, labels, reached, _ = self._leaves(features[rows], beam, combiner, mean, scratch)
            shape = len(ptr) - 1, self.num_labels
            stored = ptr[-1]
            return canonical(sp.csr_matrix((reached[:stored], labels[:stored], ptr), shape))

        blocks = list(self._blocks(features, leaves, threads))
        if not blocks:
            return sp.csr_matrix((0, self.num_labels), dtype=np.float32)
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, "csr")

    def _leaves(
        self,
        features: Features,
        beam: int,
        combiner: Combiner,
        mean: bool,
        scratch: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """What the beam reaches, copies of a label merged.

        Returns:
            (ptr [n + 1], labels, scores, inner products)
        """
        nodes, scores = self._beam(features, beam, combiner, len(self.layers) - 1, scratch)
        ptr, children, reached = self._expand(
            features, self.layers[-1], nodes, scores, combiner=combiner, scratch=scratch
        )
        labels = self.node_labels[children]
        count = len(children)
        if self.has_copies:
            packed = np.empty_like(ptr)
            merge_copies(ptr, labels, reached, mean, packed)
            ptr = packed
        return ptr, labels, reached, count

    def clusters(
        self,
        features: Features,
        *,
        beam: int,
        combiner: Combiner,
        level: int,
        threads: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best nodes of a level (0 = below the root) of each point.

        Returns:
            ids and scores [n, beam], padded as in `search`
        """
        nodes = np.full((len(features), beam), -1, np.int64)
        scores = np.full((len(features), beam), -np.inf, np.float32)

        def walk(rows: slice, scratch: np.ndarray) -> None:
            nodes[rows], scores[rows] = self._beam(
                features[rows], beam, combiner, level + 1, scratch
            )

        for _ in self._blocks(features, walk, threads):
            pass
        return nodes, scores

    def check(self, levels: Sequence[object], nodes: object) -> None:
        """InputError unless the levels fit each other, the labels and the features.

        Args:
            levels: what the message begins with for each level, its file.
            nodes: the same for `node_labels`.
        """
        parents = 1
        for layer, where in zip(self.layers, levels, strict=True):
            layer.check(parents, sum(self.shape), str(where))
            parents = int(layer.child_ptr[-1])
        labels = self.node_labels
        if (
            labels.shape != (parents,)
            or labels.dtype != np.int64
            or (parents and not 0 <= labels.min() <= labels.max() < self.num_labels)
        ):
            raise InputError(
                f"{nodes}: expected a label in [0, {self.num_labels}) for each of {parents} nodes"
            )

    def labels_of_clusters(self) -> sp.csr_matrix:
        """Which labels, or copies of them, are in which clusters of the last level.

        Returns:
            CSR [clusters, L] of ones
        """
        pointers = self.layers[-1].child_ptr
        return sp.csr_matrix(
            (np.ones(len(self.node_labels), np.float32), self.node_labels, pointers),
            (len(pointers) - 1, self.num_labels),
        )

    @cached_property
    def has_copies(self) -> bool:
        return len(np.unique(self.node_labels)) < len(self.node_labels)

    def _blocks(
        self, features: Features, work: Callable[[slice, np.ndarray], object], threads: int
    ) -> Iterator:
        if features.shape != self.shape:
            raise InputError(
                f"features of {features.shape[0]:,} sparse and {features.shape[1]:,} dense "
                f"columns, expected {self.shape[0]:,} and {self.shape[1]:,} as in training"
            )
        return in_blocks(work, len(features), self.shape[0], threads, "beams of the tree")

    def _beam(
        self,
        features: Features,
        beam: int,
        combiner: Combiner,
        levels: int,
        scratch: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nodes kept after `levels` levels and their scores [n, beam or 1].

        Padded with -1 and -inf.
        """
        nodes = np.zeros((len(features), 1), np.int64)
        scores = np.full((len(features), 1), combiner.start, np.float32)
        for layer in self.layers[:levels]:
            ptr, children, reached = self._expand(
                features, layer, nodes, scores, combiner=combiner, scratch=scratch
            )
            nodes = np.empty((len(features), beam), np.int64)
            scores = np.empty((len(features), beam), np.float32)
            best_of_rows(ptr, children, reached, beam, nodes, scores)
        return nodes, scores

    def _expand(
        self,
        features: Features,
        layer: Layer,
        nodes: np.ndarray,
        scores: np.ndarray,
        *,
        combiner: Combiner,
        scratch: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All children of the beam.

        Returns:
            (ptr [n + 1], child nodes [candidates], path scores [candidates])
        """
        width = nodes.shape[1]
        pairs = np.flatnonzero(nodes.ravel() >= 0)
        parents = nodes.ravel()[pairs]
        counts = layer.child_ptr[parents + 1] - layer.child_ptr[parents]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        out = np.zeros(offsets[-1], np.float32)
        order = np.argsort(parents, kind="stable")
        score_pairs(
            *features.arrays,
            features.dense,
            np.float32(self.bias),
            (pairs // width)[order],
            parents[order],
            offsets[:-1][order],
            *layer.weights,
            self.shape[0],
            scratch,
            out,
        )
        combiner.transform(out)
        children = np.empty(offsets[-1], np.int64)
        above = np.empty(offsets[-1], np.float32)
        spread_beam(layer.child_ptr, parents, scores.ravel()[pairs], offsets, children, above)
        combiner.combine(out, above, out=out)
        per_row = np.bincount(pairs // width, weights=counts, minlength=len(nodes)).astype(np.int64)
        return np.concatenate([[0], np.cumsum(per_row)]), children, out
