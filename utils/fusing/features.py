"""Features of a fusion's candidates, which a fuser reads."""

from __future__ import annotations

import numpy as np

from utils.fusing.candidates import Candidates
from utils.fusing.kernels import PER_MEMBER, TOGETHER, fill_features


def num_features(members: int) -> int:
    return PER_MEMBER * members + TOGETHER


def num_members(features: int) -> int:
    """How many members have so many features."""
    return (features - TOGETHER) // PER_MEMBER


def feature_owners(members: int) -> np.ndarray:
    """The member that each feature is about [F]; `members` = about none alone."""
    return np.append(np.repeat(np.arange(members), PER_MEMBER), np.full(TOGETHER, members))


def rising_features(members: int) -> list[int]:
    """1, -1 or 0 a feature [F]: a label gets likelier as it rises, as it falls, or either."""
    return [1, 1, 1, 1, 1, -1, 1] * members + [1, 1, 1, 1, -1, -1, 0]


def features(candidates: Candidates, log_counts: np.ndarray) -> np.ndarray:
    """Describe each candidate that there is, in the order of `labels[known]`.

    Of each member: the score; its gap to the member's best for the point; that gap in standard
    deviations of the member's scores for the point, and the logarithm of its softmax over the
    candidates; the lead over the second, if it is the best; the logarithm of the rank from 1, and
    1 / rank. Together: how many members rank it first, among 3, 10 and 100; the logarithm of its
    best rank, and the mean logarithm; the label's log frequency.

    Args:
        log_counts: [L] log(1 + training points).
    Returns:
        [candidates, num_features(m)] float32
    """
    members = candidates.scores.shape[2]
    out = np.empty((int(candidates.known.sum()), num_features(members)), np.float32)
    fill_features(
        candidates.labels,
        candidates.ranks,
        np.ascontiguousarray(candidates.scores),
        candidates.k,
        log_counts,
        out,
    )
    return out
