"""Candidates of a fusion: the union of what its members propose for a point, with their scores.

    labels, ranks = merge([ids of member 1 [n, k], ids of member 2 [n, k]], num_labels)
    candidates = Candidates(labels, ranks, scores, k)

Their features are in utils/fusing/features.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from utils.fusing.kernels import merge_proposals
from utils.reading.saved import NotFiniteError
from utils.sparse import contains, topk_csr


@dataclass(frozen=True)
class Candidates:
    """Candidates of n points from m members, w places a point.

    Attributes:
        labels: [n, w] int64, -1 = an empty place.
        ranks: [n, w, m] int32, place among the member's proposals from 0, k where it proposed
            another.
        scores: [n, w, m] float32, whatever in empty places.
        k: labels that each member proposed.
    """

    labels: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    k: int

    @property
    def known(self) -> np.ndarray:
        return self.labels >= 0

    def of_points(self, rows: slice) -> Candidates:
        """The candidates of some of the points."""
        return Candidates(self.labels[rows], self.ranks[rows], self.scores[rows], self.k)

    def without(self, member: int) -> Candidates:
        """The same candidates seen by the other members alone; what only it proposed is dropped."""
        ranks = np.delete(self.ranks, member, 2)
        proposed = (ranks < self.k).any(2)
        return Candidates(
            np.where(proposed, self.labels, -1), ranks, np.delete(self.scores, member, 2), self.k
        )

    def without_pairs(self, pairs: sp.csr_matrix) -> Candidates:
        """The same without pairs of a point and a label, stored in CSR [n, L]."""
        removed = contains(pairs, np.arange(len(self.labels))[:, None], self.labels)
        return replace(self, labels=np.where(removed, -1, self.labels))

    def as_csr(self, values: np.ndarray, num_labels: int) -> sp.csr_matrix:
        """Values of the known candidates [candidates] as a score matrix [n, L]."""
        dense = np.zeros(self.labels.shape, np.float32)
        dense[self.known] = values
        return topk_csr(dense, self.labels, num_labels)

    def check_finite(self, names: Sequence[str], where: str) -> None:
        """Raise NotFiniteError that names a member with scores that are not finite.

        where: whose candidates these are, for the message.
        """
        for m, name in enumerate(names):
            bad = np.argwhere(self.known & ~np.isfinite(self.scores[:, :, m]))
            if len(bad):
                point, place = bad[0]
                raise NotFiniteError(
                    f"{name}: {len(bad):,} of {self.known.sum():,} scores of candidates of "
                    f"{where} are not finite; the first is {self.scores[point, place, m]}, point "
                    f"{point}, label {self.labels[point, place]}"
                )


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of the points of all parts, which have the same members."""
    width = max(part.labels.shape[1] for part in parts)

    def widen(array: np.ndarray, value: float) -> np.ndarray:
        pad = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, pad, constant_values=value)

    return Candidates(
        np.concatenate([widen(p.labels, -1) for p in parts]),
        np.concatenate([widen(p.ranks, 0) for p in parts]),
        np.concatenate([widen(p.scores, 0) for p in parts]),
        parts[0].k,
    )


def relevant_places(candidates: Candidates, relevance: sp.csr_matrix) -> np.ndarray:
    """Which of the known candidates are relevant [candidates] bool."""
    known = candidates.known
    points, _ = np.nonzero(known)
    return contains(relevance, points, candidates.labels[known])


def merge(proposals: Sequence[np.ndarray], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Join the members' proposals, [n, k] label ids each, -1 = none.

    Returns:
        (labels [n, w] int64, ranks [n, w, m] int32) as in `Candidates`
    """
    stacked = np.ascontiguousarray(np.stack(proposals), np.int64)
    members, n, k = stacked.shape
    if stacked.size and not -1 <= stacked.min() <= stacked.max() < num_labels:
        raise ValueError(
            f"merge: expected label ids in [-1, {num_labels}), got {stacked.min()} to "
            f"{stacked.max()}"
        )
    labels = np.full((n, members * k), -1, np.int64)
    ranks = np.full((n, members * k, members), k, np.int32)
    merge_proposals(stacked, np.full(num_labels, -1, np.int32), labels, ranks)
    width = max(int((labels >= 0).sum(1).max(initial=0)), 1)
    return labels[:, :width], ranks[:, :width]
