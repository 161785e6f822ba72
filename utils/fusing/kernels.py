"""Compiled loops of the learned fusion: unions of proposals, features, walks down trees."""

from __future__ import annotations

import numpy as np
from numba import njit

PER_MEMBER, TOGETHER = 7, 7  # features of each member and of all together, as `features` lists them
SMALLEST_SPREAD = 1e-6
OPTIONS = {"cache": True, "nogil": True, "boundscheck": False}


@njit(**OPTIONS)
def merge_proposals(proposals, place, labels, ranks):
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


@njit(**OPTIONS)
def member_features(labels, ranks, scores, out):
    """PER_MEMBER features of a point's candidates by one member: out [candidates, F].

    labels, ranks, scores: of the point's places [w].
    """
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
def fill_features(labels, ranks, scores, k, log_counts, out):
    """Feature rows of all candidates that there are, point by point: out [candidates, F]."""
    n, width, members = scores.shape
    together = PER_MEMBER * members
    first = 0
    for i in range(n):
        for m in range(members):
            count = member_features(
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


@njit(**OPTIONS)
def walk_trees(x, roots, feature, threshold, left, right, value, start, out):
    """Add up the leaves that rows x [M, F] reach, and the start: out [M]."""
    for i in range(len(x)):
        total = start
        for tree in range(len(roots)):
            node = roots[tree]
            while feature[node] >= 0:
                node = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
            total += value[node]
        out[i] = total


@njit(**OPTIONS)
def walk_shares(x, roots, feature, threshold, left, right, value, owner, out):
    """What each owner of features adds on the way from the root to the leaf (Saabas).

    out: [n, owners], added to.
    """
    for i in range(len(x)):
        for tree in range(len(roots)):
            node = roots[tree]
            while feature[node] >= 0:
                child = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
                out[i, owner[feature[node]]] += value[child] - value[node]
                node = child
