"""Candidates of a fusion: the union of what its members propose for a point, their scores of it,
and the features that a fuser reads.

    labels, ranks = merge([ids of member 1 [n, k], ids of member 2 [n, k]], num_labels)
    found = Candidates(labels, ranks, scores, k)
    x = features(found, log_counts)      # [candidates, num_features(members)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numba import njit

from utils.reading.saved import NotFiniteError
from utils.sparse import contains, topk_csr

# features of each member and of all together, as `features` lists them
PER_MEMBER, TOGETHER = 7, 7
SMALLEST_SPREAD = 1e-6
OPTIONS = {"cache": True, "nogil": True, "boundscheck": False}


@dataclass(frozen=True)
class Candidates:
    """Candidates of n points from m members, w places a point.

    Attributes: labels [n, w] int64, -1 = an empty place; ranks [n, w, m] int32, place among the
    member's proposals from 0, k where it proposed another; scores [n, w, m] float32, whatever in
    empty places; k, labels that each member proposed.
    """

    labels: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    k: int

    @property
    def known(self) -> np.ndarray:
        return self.labels >= 0

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
        """NotFiniteError that names a member whose scores of the candidates of `where` are not
        finite."""
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


def relevant_places(found: Candidates, relevance: sp.csr_matrix) -> np.ndarray:
    """Which of the known candidates are relevant [candidates] bool."""
    rows = np.broadcast_to(np.arange(len(found.labels))[:, None], found.labels.shape)
    return contains(relevance, rows[found.known], found.labels[found.known])


@njit(**OPTIONS)
def _merge(proposals, place, labels, ranks):
    """Fill labels and ranks; `place` [L] int32 of -1, left so."""
    members, n, k = proposals.shape
    for i in range(n):
        used = 0
        for m in range(members):
            for r in range(k):
                label = proposals[m, i, r]
                if label < 0:
                    continue
                if place[label] < 0:
                    place[label] = used
                    labels[i, used] = label
                    used += 1
                ranks[i, place[label], m] = r
        for j in range(used):
            place[labels[i, j]] = -1


def merge(proposals: Sequence[np.ndarray], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Union of the members' proposals, [n, k] label ids each, -1 = none: (labels [n, m k], ranks
    [n, m k, m])."""
    stacked = np.ascontiguousarray(np.stack(proposals), np.int64)
    members, n, k = stacked.shape
    if stacked.size and not -1 <= stacked.min() <= stacked.max() < num_labels:
        raise ValueError(
            f"merge: expected label ids in [-1, {num_labels}), got {stacked.min()} to "
            f"{stacked.max()}"
        )
    labels = np.full((n, members * k), -1, np.int64)
    ranks = np.full((n, members * k, members), k, np.int32)
    _merge(stacked, np.full(num_labels, -1, np.int32), labels, ranks)
    width = max(int((labels >= 0).sum(1).max(initial=0)), 1)
    return labels[:, :width], ranks[:, :width]


@njit(**OPTIONS)
def _of_member(labels, ranks, scores, out):
    """PER_MEMBER features of a point's candidates by one member: out [candidates, F]; places
    [w]."""
    best = second = -np.inf
    total, count = 0.0, 0
    for j in range(len(labels)):
        if labels[j] >= 0:
            score = np.float64(scores[j])
            total += score
            count += 1
            best, second = max(best, score), max(min(best, score), second)
    squares = normaliser = 0.0
    for j in range(len(labels)):
        if labels[j] >= 0:
            squares += (scores[j] - total / count) ** 2
    spread = np.sqrt(squares / max(count, 1)) + SMALLEST_SPREAD
    for j in range(len(labels)):
        if labels[j] >= 0:
            normaliser += np.exp((scores[j] - best) / spread)
    row = 0
    for j in range(len(labels)):
        if labels[j] < 0:
            continue
        gap = scores[j] - best
        out[row, 0] = scores[j]
        out[row, 1] = gap
        out[row, 2] = gap / spread
        out[row, 3] = gap / spread - np.log(normaliser)
        out[row, 4] = best - second if gap == 0 and count > 1 else 0.0
        out[row, 5] = np.log(ranks[j] + 1.0)
        out[row, 6] = 1.0 / (ranks[j] + 1.0)
        row += 1
    return row


@njit(**OPTIONS)
def _features(labels, ranks, scores, k, log_counts, out):
    """Feature rows of all candidates that there are, point by point: out [candidates, F]."""
    n, width, members = scores.shape
    together = PER_MEMBER * members
    first = 0
    for i in range(n):
        for m in range(members):
            count = _of_member(
                labels[i],
                ranks[i, :, m],
                scores[i, :, m],
                out[first:, PER_MEMBER * m : PER_MEMBER * (m + 1)],
            )
        row = first
        for j in range(width):
            if labels[i, j] < 0:
                continue
            out[row, together:] = 0
            out[row, together + 4] = np.inf
            for m in range(members):
                rank, log_rank = ranks[i, j, m], out[row, PER_MEMBER * m + 5]
                out[row, together] += rank < min(1, k)
                out[row, together + 1] += rank < min(3, k)
                out[row, together + 2] += rank < min(10, k)
                out[row, together + 3] += rank < min(100, k)
                out[row, together + 4] = min(out[row, together + 4], log_rank)
                out[row, together + 5] += log_rank / members
            out[row, together + 6] = log_counts[labels[i, j]]
            row += 1
        first += count


def num_features(members: int) -> int:
    return PER_MEMBER * members + TOGETHER


def feature_owners(members: int) -> np.ndarray:
    """The member that each feature is about [F]; `members` = about none alone."""
    return np.append(np.repeat(np.arange(members), PER_MEMBER), np.full(TOGETHER, members))


def rising_features(members: int) -> list[int]:
    """1, -1 or 0 a feature [F]: a label gets likelier as it rises, as it falls, or either."""
    return [1, 1, 1, 1, 1, -1, 1] * members + [1, 1, 1, 1, -1, -1, 0]


def features(found: Candidates, log_counts: np.ndarray) -> np.ndarray:
    """[candidates, num_features(m)] float32, in the order of `found.labels[found.known]`.

    Of each member: the score; its gap to the member's best for the point; that gap in standard
    deviations of the member's scores for the point, and the logarithm of its softmax over the
    candidates; the lead over the second, if it is the best; the logarithm of the rank from 1, and 1
    / rank. Together: how many members rank it first, among 3, 10 and 100; the logarithm of its best
    rank, and the mean logarithm; the label's log frequency.

    Args:
        log_counts: [L] log(1 + training points).
    """
    out = np.empty((int(found.known.sum()), num_features(found.scores.shape[2])), np.float32)
    _features(
        found.labels, found.ranks, np.ascontiguousarray(found.scores), found.k, log_counts, out
    )
    return out
